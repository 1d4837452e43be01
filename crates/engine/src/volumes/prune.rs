//! `POST /volumes/prune`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use serde_json::{Value, json};

use super::{discard, size};
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::filters::Filters;
use crate::query::Query;
use crate::version::ApiVersion;
use crate::volume::{ANONYMOUS_LABEL, Volume};

/// From this version on only volumes without names are pruned, unless all are asked for.
const ANONYMOUS_ONLY: ApiVersion = ApiVersion::new(1, 42);

/// Removes volumes that no container uses.
///
/// # Errors
/// 400 for a filter that is not known.
pub async fn prune(
    State(engine): State<Arc<Engine>>,
    Extension(version): Extension<ApiVersion>,
    query: Query,
) -> ApiResult<Json<Value>> {
    let filters = query.filters()?;
    filters.only(&["label", "label!", "all"])?;
    let all = filters.truth("all")?.unwrap_or_default() || version < ANONYMOUS_ONLY;
    let pruned = tokio::task::spawn_blocking(move || {
        let (mut deleted, mut reclaimed) = (Vec::new(), 0);
        for volume in engine.volumes.all().iter().filter(|volume| may_go(volume, &filters, all)) {
            let bytes = size(volume);
            match discard(&engine, &volume.name) {
                Ok(()) => {
                    deleted.push(volume.name.clone());
                    reclaimed += bytes;
                }
                // In use, most likely.
                Err(error) => tracing::debug!(volume = volume.name, %error, "not pruned"),
            }
        }
        engine.events.publish("volume", "prune", "", [("reclaimed".to_owned(), reclaimed.to_string())].into());
        json!({ "VolumesDeleted": deleted, "SpaceReclaimed": reclaimed })
    });
    Ok(Json(pruned.await?))
}

fn may_go(volume: &Volume, filters: &Filters, all: bool) -> bool {
    (all || volume.label(ANONYMOUS_LABEL).is_some())
        && filters.fits_labels("label", |name| volume.label(name))
        && filters.lacks_labels(|name| volume.label(name))
}
