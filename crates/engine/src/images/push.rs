//! `POST /images/{name}/push`: an image to a registry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::response::Response;
use image::Reference;
use image::registry::{Credentials, PushEvent, PushStep};
use proto::{Digest, ErrorKind};
use serde_json::{Value, json};

use super::progress::{self, Lines};
use super::{auth, blocking, publish};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;

/// At least this much time lies between two lines about how far one layer is.
const INTERVAL: Duration = Duration::from_millis(100);

pub(super) async fn push(engine: Arc<Engine>, name: &str, query: &Query, headers: &HeaderMap) -> ApiResult<Response> {
    let invalid = |error: image::InvalidReference| ApiError::new(error.kind(), chain(&error));
    let name: Reference = name.parse().map_err(invalid)?;
    if name.digest().is_some() {
        return Err(ApiError::invalid("cannot push a digest reference"));
    }
    let credentials = auth::credentials(headers)?;
    let names = match query.get("tag") {
        Some(tag) => vec![name.with_tag(tag).map_err(invalid)?],
        None => all_tags(&engine, &name).await?,
    };
    progress::answer_until_gone(move |lines| run(engine, names, credentials, lines)).await
}

/// All names with tags that images have in a repository.
async fn all_tags(engine: &Arc<Engine>, name: &Reference) -> ApiResult<Vec<Reference>> {
    let repository = name.repository();
    let listed = blocking(engine, |store| Ok(store.list())).await?;
    let tags = listed.iter().flat_map(|image| &image.repo_tags).filter_map(|tag| tag.parse::<Reference>().ok());
    let names: Vec<Reference> = tags.filter(|tag| tag.repository() == repository).collect();
    match names.is_empty() {
        true => Err(unknown(&name.familiar_repository())),
        false => Ok(names),
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("An image does not exist locally with the tag: {name}"))
}

async fn run(
    engine: Arc<Engine>,
    names: Vec<Reference>,
    credentials: Option<Credentials>,
    lines: Lines,
) -> ApiResult<()> {
    if let Some(first) = names.first() {
        lines.put(json!({"status": format!("The push refers to repository [{}]", first.repository())}));
    }
    for name in &names {
        let asked = name.to_string();
        let known = blocking(&engine, move |store| Ok(store.resolve(&asked).is_ok())).await?;
        if !known {
            return Err(unknown(&name.familiar_repository()));
        }
    }
    for name in names {
        one(&engine, &name, credentials.as_ref(), &lines).await?;
    }
    Ok(())
}

async fn one(engine: &Engine, name: &Reference, credentials: Option<&Credentials>, lines: &Lines) -> ApiResult<()> {
    let last: Mutex<HashMap<Digest, Instant>> = Mutex::default();
    let tell = |event: PushEvent| {
        if let PushStep::Pushing { bytes, total_bytes } = &event.step {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if last.get(&event.diff_id).is_some_and(|told| now.duration_since(*told) < INTERVAL) && bytes < total_bytes
            {
                return;
            }
            last.insert(event.diff_id.clone(), now);
            lines.put_if_room(line(&event));
        } else {
            lines.put(line(&event));
        }
    };
    let pushed = engine.registries.push(name, credentials, &tell).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound if !error.is_unauthorized() => ApiError::not_found(chain(&error)),
        _ => auth::failed(&error),
    })?;
    let (tag, digest, size) = (&pushed.tag, &pushed.digest, pushed.size);
    lines.put(json!({"status": format!("{tag}: digest: {digest} size: {size}")}));
    lines.put(json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}}));
    publish(engine, "push", &name.familiar(), &name.familiar_repository());
    Ok(())
}

/// The line in Docker's form.
fn line(event: &PushEvent) -> Value {
    let mounted;
    let (status, of) = match &event.step {
        PushStep::Preparing => ("Preparing", None),
        PushStep::Waiting => ("Waiting", None),
        PushStep::Exists => ("Layer already exists", None),
        PushStep::Mounted { from } => {
            mounted = format!("Mounted from {from}");
            (mounted.as_str(), None)
        }
        PushStep::Pushing { bytes, total_bytes } => ("Pushing", Some((*bytes, *total_bytes))),
        PushStep::Pushed => ("Pushed", None),
    };
    progress::step(status, &event.diff_id, of)
}
