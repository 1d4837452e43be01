//! `POST /containers/{id}/resize` and `/exec/{id}/resize`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use proto::ErrorKind;

use super::exec;
use crate::container::{Container, Running};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;

fn size(query: &Query) -> ApiResult<(u32, u32)> {
    let number = |name: &str| -> ApiResult<u32> {
        let value = query.number::<u32>(name)?;
        value.ok_or_else(|| ApiError::invalid(format!("invalid resize {name}: it is missing")))
    };
    Ok((number("w")?, number("h")?))
}

/// Sets the size of a container's terminal.
///
/// # Errors
/// 404; 409 when it does not run.
pub async fn container(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let (width, height) = size(&query)?;
    let running = container.running()?;
    if container.record().config_flag("Tty") {
        resize(&container, &running, "", width, height).await?;
    }
    container.emit(&engine.events, "resize", &[("height", height.to_string()), ("width", width.to_string())]);
    Ok(StatusCode::OK)
}

/// Sets the size of a further process' terminal.
///
/// # Errors
/// 404; 409 when it does not run.
pub async fn exec(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let (container, exec) = exec::find(&engine, &id)?;
    let (width, height) = size(&query)?;
    if !exec.is_running() {
        return Err(ApiError::conflict(format!("exec process {id} is not started")));
    }
    let running = container.running()?;
    if exec.terminal() {
        resize(&container, &running, &exec.id, width, height).await?;
    }
    Ok(StatusCode::OK)
}

/// When: the process has a terminal; of one that has none, dockerd takes any size for good.
async fn resize(container: &Container, running: &Running, exec: &str, width: u32, height: u32) -> ApiResult<()> {
    running.task.resize(exec, width, height).await.map_err(|status| match status.kind {
        // It ended in this moment.
        ErrorKind::NotFound | ErrorKind::Unavailable | ErrorKind::FailedPrecondition => {
            ApiError::conflict(format!("container {} is not running: {status}", container.id))
        }
        _ => status.into(),
    })
}
