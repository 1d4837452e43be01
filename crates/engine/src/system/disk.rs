//! `GET /system/df`: what is stored, in bytes that it takes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;
use crate::{containers, images, volumes};

/// Images, containers and their changes, or those that `type` names. There are no build caches yet.
pub(super) async fn usage(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let wanted: Vec<String> = query.all("type").map(str::to_owned).collect();
    if let Some(unknown) = wanted.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        return Err(ApiError::invalid(format!("unknown object type: {unknown}")));
    }
    let measured = tokio::task::spawn_blocking(move || {
        let wants = |kind: &str| wanted.is_empty() || wanted.iter().any(|one| one == kind);
        let mut usage = json!({});
        if wants("image") {
            usage["LayersSize"] = json!(engine.images.layers_bytes());
            usage["Images"] = json!(images::entries(&engine));
        }
        if wants("container") {
            usage["Containers"] = json!(containers::with_sizes(&engine)?);
        }
        if wants("volume") {
            usage["Volumes"] = json!(volumes::usage(&engine));
        }
        if wants("build-cache") {
            usage["BuildCache"] = json!([]);
            usage["BuilderSize"] = json!(0);
        }
        Ok::<_, ApiError>(usage)
    });
    Ok(Json(measured.await??))
}

/// What `type` may name. Source: Docker Engine API v1.42, "Get data usage information".
const KINDS: [&str; 4] = ["container", "image", "volume", "build-cache"];
