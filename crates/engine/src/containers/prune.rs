//! `POST /containers/prune`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{remove, size};
use crate::clock::Timestamp;
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::filters::Filters;
use crate::query::Query;

/// Removes every container that does not run.
///
/// # Errors
/// 400 for a filter that is not known.
pub async fn prune(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let filters = query.filters()?;
    filters.only(&["until", "label", "label!"])?;
    let until = filters.until()?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for container in engine.containers.all() {
        let _lifecycle = container.lifecycle.lock().await;
        if !may_go(&container, &filters, until) {
            continue;
        }
        let bytes = size::writable_bytes(&container).await;
        match remove::discard(&engine, &container).await {
            Ok(()) => {
                deleted.push(container.id.clone());
                reclaimed += bytes;
            }
            Err(error) => tracing::warn!(id = %container.id, "cannot prune a container: {error}"),
        }
    }
    engine.events.publish("container", "prune", "", [("reclaimed".to_owned(), reclaimed.to_string())].into());
    Ok(Json(json!({ "ContainersDeleted": deleted, "SpaceReclaimed": reclaimed })))
}

fn may_go(container: &Container, filters: &Filters, until: Option<Timestamp>) -> bool {
    let record = container.record();
    let idle = matches!(record.phase, Phase::Created { .. } | Phase::Exited(_));
    let removed = container.progress().borrow().removed;
    idle && !removed
        && until.is_none_or(|until| record.created <= until)
        && filters.fits_labels("label", |name| record.label(name))
        && filters.lacks_labels(|name| record.label(name))
}
