//! `POST /containers/{id}/start`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::{launch, remove};
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use proto::ErrorKind;

/// Starts a container.
///
/// # Errors
/// 404; 304 when it runs; 409 when it is paused or going away; what launching says.
pub async fn start(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    // A client that leaves must not leave a container half started.
    tokio::spawn(async move { begin(&engine, &container).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a container that does not run.
///
/// # Errors
/// As [`start`].
pub async fn begin(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    let lifecycle = container.hold().await?;
    let phase = container.record().phase.clone();
    if phase.is_paused() {
        return Err(ApiError::conflict("cannot start a paused container, try unpause instead"));
    }
    if phase.is_running() {
        return Err(ApiError::new(ErrorKind::NotModified, ""));
    }
    container.record().restarts = 0;
    container.pauses().reset();
    let started = launch::launch(engine, container).await;
    if started.is_err()
        && container.record().host_flag("AutoRemove")
        && let Err(error) = remove::discard_with_volumes(engine, container).await
    {
        tracing::error!(id = %container.id, "cannot remove a container that did not start: {error}");
    }
    drop(lifecycle);
    started
}
