//! Credentials for registries, as Docker's clients send them; `POST /auth`. The engine keeps none and reads no file of them.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use image::Reference;
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

/// Credentials by registry.
pub(crate) type Logins = HashMap<String, Credentials>;

/// The credentials of the header `X-Registry-Config`, with which a build pulls. Shape: base64 of JSON.
///
/// # Errors
/// 400 when the header cannot be read.
pub(crate) fn logins(headers: &HeaderMap) -> ApiResult<Logins> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let Some(value) = headers.get("x-registry-config").filter(|value| !value.is_empty()) else {
        return Ok(Logins::default());
    };
    let malformed = || ApiError::invalid("X-Registry-Config is malformed");
    let json = [&URL_SAFE, &STANDARD].iter().find_map(|engine| engine.decode(value.as_bytes()).ok());
    let all: Option<Logins> = serde_json::from_slice(&json.ok_or_else(malformed)?).map_err(|_| malformed())?;
    Ok(all.unwrap_or_default())
}

/// Those for an image's registry.
///
/// # Errors
/// 400 when they are malformed.
pub(crate) fn login_for(logins: &Logins, name: &Reference) -> ApiResult<Option<Credentials>> {
    let domain = name.domain();
    let fits = |server: &str| {
        let bare = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        bare == domain || domain == "docker.io" && bare == "index.docker.io/v1"
    };
    let found = logins.iter().find(|(server, _)| fits(server)).map(|(_, login)| login.clone());
    found.map_or(Ok(None), |login| login.completed().map_err(|error| invalid(&error)))
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
