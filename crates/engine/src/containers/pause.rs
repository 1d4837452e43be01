//! `POST /containers/{id}/pause` and `/unpause`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;

use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};

/// Stops every process of a container from running; of a hyperv container its utility VM.
///
/// # Errors
/// 404; 409 when it does not run or is paused.
pub async fn pause(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let failed = |error: ApiError| error.context(format!("cannot pause container {}", container.id));
    let _lifecycle = container.hold().await?;
    let running = container.running()?;
    if container.record().phase.is_paused() {
        return Err(ApiError::conflict(format!("Container {} is already paused", container.id)));
    }
    running.task.pause().await.map_err(|status| failed(status.into()))?;
    set_paused(&container, true).await?;
    container.emit(&engine.events, "pause", &[]);
    Ok(StatusCode::NO_CONTENT)
}

/// Undoes a pause.
///
/// # Errors
/// 404; 409 when it is not paused.
pub async fn unpause(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let _lifecycle = container.hold().await?;
    if !container.record().phase.is_paused() {
        return Err(ApiError::conflict(format!("Container {} is not paused", container.id)));
    }
    let failed = |error: ApiError| error.context(format!("Cannot unpause container {}", container.id));
    container.running()?.task.resume().await.map_err(|status| failed(status.into()))?;
    set_paused(&container, false).await?;
    container.emit(&engine.events, "unpause", &[]);
    Ok(StatusCode::NO_CONTENT)
}

/// Notes that a container that runs is paused, or no longer.
///
/// # Errors
/// The record cannot be written.
pub async fn set_paused(container: &Arc<Container>, now: bool) -> ApiResult<()> {
    if let Phase::Running { paused, .. } = &mut container.record().phase {
        *paused = now;
    }
    container.save().await
}
