//! Names and removal: `POST /images/{name}/tag`, `DELETE /images/{name}`, `POST /images/prune`.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use image::{ImageSummary, RemoveError, Removed, TagError};
use proto::Digest;
use serde_json::{Value, json};

use super::{blocking, list, not_resolved, publish, reference, resolve};
use crate::clock::Timestamp;
use crate::containers::uses_of;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::filters::Filters;
use crate::query::Query;

pub(super) async fn tag(engine: Arc<Engine>, name: &str, query: &Query) -> ApiResult<Response> {
    let target = reference(query)?.ok_or_else(|| ApiError::invalid("the new name is missing: parameter repo"))?;
    let name = name.to_owned();
    let given = target.familiar();
    let id = blocking(&engine, move |store| {
        store.tag(&name, &target).map_err(|error| match &error {
            TagError::Resolve(error) => not_resolved(error),
            error => ApiError::new(error.kind(), chain(error)),
        })?;
        Ok(resolve(store, &target.to_string())?.id)
    })
    .await?;
    publish(&engine, "tag", id.as_str(), &given);
    Ok(StatusCode::CREATED.into_response())
}

pub(super) async fn remove(engine: Arc<Engine>, name: &str, query: &Query) -> ApiResult<Response> {
    let (name, force, prune) = (name.to_owned(), query.flag("force"), !query.flag("noprune"));
    let shared = Arc::clone(&engine);
    let (id, removed) = blocking(&engine, move |store| {
        let id = resolve(store, &name)?.id;
        let removed = store
            .remove_with_steps(&name, force, prune, &|id| uses_of(&shared, id))
            .map_err(|error| refused(&error))?;
        Ok((id, removed))
    })
    .await?;
    Ok(Json(report(&engine, &id, &removed)).into_response())
}

fn refused(error: &RemoveError) -> ApiError {
    match error {
        RemoveError::Resolve(error) => not_resolved(error),
        error => ApiError::new(error.kind(), chain(error)),
    }
}

/// What was removed as Docker's clients read it; listeners are told as well.
fn report(engine: &Engine, id: &Digest, removed: &[Removed]) -> Vec<Value> {
    removed
        .iter()
        .map(|one| match one {
            Removed::Untagged(name) => {
                publish(engine, "untag", id.as_str(), id.as_str());
                json!({"Untagged": name})
            }
            Removed::Deleted(gone) => {
                if gone == id {
                    publish(engine, "delete", id.as_str(), id.as_str());
                }
                json!({"Deleted": gone.as_str()})
            }
        })
        .collect()
}

/// Removes images that nobody uses: the nameless ones, or with `dangling=false` all of them.
pub(super) async fn prune(engine: Arc<Engine>, query: &Query) -> ApiResult<Response> {
    let filters = query.filters()?;
    filters.only(&["dangling", "label", "label!", "until"])?;
    let dangling_only = filters.truth("dangling")?.unwrap_or(true);
    let until = filters.until()?.map(Timestamp::seconds);
    let shared = Arc::clone(&engine);
    let (removed, freed) = blocking(&engine, move |store| {
        let before = store.layers_bytes();
        store.collect(&|id| uses_of(&shared, id)).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        let mut removed = Vec::new();
        for image in store.list() {
            let wanted = !list::is_step(&image)
                && (image.repo_tags.is_empty() || !dangling_only)
                && until.is_none_or(|until| image.created_unix < until)
                && labels_fit(&filters, &image);
            if !wanted || !uses_of(&shared, &image.id).is_empty() {
                continue;
            }
            match store.remove(image.id.as_str(), true, &|id| uses_of(&shared, id)) {
                Ok(gone) => {
                    removed.push((image.id, gone));
                    image::failpoint::reach("prune.one-gone");
                }
                // Somebody has begun to use it, or removed it, since the list was made.
                Err(RemoveError::Store(error)) => return Err(ApiError::new(error.kind(), chain(&error))),
                Err(error) => tracing::debug!("not pruned: {error}"),
            }
        }
        Ok((removed, before.saturating_sub(store.layers_bytes())))
    })
    .await?;
    let deleted: Vec<Value> = removed.iter().flat_map(|(id, gone)| report(&engine, id, gone)).collect();
    engine.events.publish("image", "prune", "", [("reclaimed".to_owned(), freed.to_string())].into());
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({"ImagesDeleted": deleted, "SpaceReclaimed": freed})).into_response())
}

fn labels_fit(filters: &Filters, image: &ImageSummary) -> bool {
    let label = |name: &str| image.labels.get(name).map(String::as_str);
    filters.fits_labels("label", label) && filters.lacks_labels(label)
}
