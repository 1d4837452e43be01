//! `GET /distribution/{name}/json`: what a registry has under a name, without pulling it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use image::Reference;
use serde_json::json;

use super::auth;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};

pub(super) async fn inspect(
    State(engine): State<Arc<Engine>>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let name = rest.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let name: Reference = name.parse().map_err(|error: image::InvalidReference| ApiError::invalid(chain(&error)))?;
    let credentials = auth::credentials(&headers)?;
    let found = engine.registries.look_up(&name, credentials.as_ref()).await.map_err(|error| auth::failed(&error))?;
    let answer = json!({
        "Descriptor": {"mediaType": found.media_type, "digest": found.digest, "size": found.size},
        "Platforms": found.platforms,
    });
    Ok(Json(answer).into_response())
}
