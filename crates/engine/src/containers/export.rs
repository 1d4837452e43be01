//! `GET /containers/{id}/export`: a container's whole file system as a tar stream.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use proto::files::FilesRequest;
use tokio::sync::mpsc;

use super::archive::{body_of, stream};
use super::files::Operation;
use crate::engine::Engine;
use crate::error::ApiResult;

/// Exports a container.
///
/// # Errors
/// 404 for an unknown container. What fails after the first byte ends the body in an error.
pub async fn export(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<Response> {
    let container = engine.containers.find(&id)?;
    let operation = Operation::begin(&engine, &container, FilesRequest::Export).await?;
    let receiver = operation.receiver()?;
    let (pieces, body) = mpsc::channel(8);
    tokio::task::spawn_blocking(move || stream(operation, receiver, &pieces));
    container.emit(&engine.events, "export", &[]);
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body_of(body)).into_response())
}
