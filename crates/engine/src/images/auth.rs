//! Credentials for registries, as Docker's clients send them; `POST /auth`. The engine keeps none and reads no file of them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use image::registry::{Credentials, InvalidCredentials, RegistryError};
use serde_json::json;

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};

/// Bytes of a body with credentials.
const MAX_BODY: usize = 64 << 10;

/// Who asks, by the header `X-Registry-Auth`.
pub(super) fn credentials(headers: &HeaderMap) -> ApiResult<Option<Credentials>> {
    let Some(value) = headers.get("x-registry-auth") else { return Ok(None) };
    let text = value.to_str().map_err(|_| ApiError::invalid("X-Registry-Auth is not text"))?;
    Credentials::from_header(text).map_err(|error| invalid(&error))
}

fn invalid(error: &InvalidCredentials) -> ApiError {
    ApiError::invalid(chain(error))
}

/// The error of a registry for a client. Never 401: at that the docker CLI asks its user for an account of Docker Hub.
pub(super) fn failed(error: &RegistryError) -> ApiError {
    ApiError::new(error.kind(), chain(error))
}

/// `POST /auth`: are these credentials right?
pub(super) async fn log_in(State(engine): State<Arc<Engine>>, request: Request<Body>) -> ApiResult<Response> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|_| ApiError::invalid("the credentials cannot be read or are too long"))?.to_bytes();
    let given: Credentials = serde_json::from_slice(&body)
        .map_err(|error| ApiError::invalid(format!("the credentials are malformed: {error}")))?;
    let server = given.serveraddress.clone();
    let given = given.completed().map_err(|error| invalid(&error))?;
    let given = given.ok_or_else(|| ApiError::invalid("a user name and a password are needed"))?;
    engine.registries.log_in(&server, &given).await.map_err(|error| {
        let answer = failed(&error);
        if error.is_unauthorized() { answer.with_status(StatusCode::UNAUTHORIZED) } else { answer }
    })?;
    Ok(Json(json!({"Status": "Login Succeeded", "IdentityToken": ""})).into_response())
}
