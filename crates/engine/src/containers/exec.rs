//! Further processes in a running container: `POST /containers/{id}/exec` and `GET /exec/{id}/json`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use bollard::models::ExecConfig;
use serde_json::{Value, json};

use super::names;
use crate::body;
use crate::container::Container;
use crate::container::exec::{Exec, ExecPhase};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::streams::input::parse_detach_keys;

/// Prepares a further process.
///
/// # Errors
/// 404; 400 for a command or option that is none; 409 when the container does not run or is paused.
pub async fn create(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let config: ExecConfig = body::json(request).await?;
    if config.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(ApiError::invalid("No exec command specified"));
    }
    if let Some(keys) = config.detach_keys.as_deref().filter(|keys| !keys.is_empty()) {
        parse_detach_keys(keys)?;
    }
    let container = engine.containers.find(&id)?;
    container.running()?;
    if container.record().phase.is_paused() {
        return Err(ApiError::conflict(format!("Container {id} is paused, unpause the container before exec")));
    }
    let exec_id = hex::encode(names::random::<32>()?);
    let exec = Exec::new(exec_id.clone(), config);
    let action = format!("exec_create: {}", exec.command_line());
    {
        let mut execs = container.execs();
        execs.retain(|_, exec| !exec.is_old());
        execs.insert(exec_id.clone(), Arc::new(exec));
    }
    container.emit(&engine.events, action, &[("execID", exec_id.clone())]);
    Ok((StatusCode::CREATED, Json(json!({ "Id": exec_id }))))
}

/// Finds a further process, and its container.
///
/// # Errors
/// 404.
pub fn find(engine: &Engine, id: &str) -> ApiResult<(Arc<Container>, Arc<Exec>)> {
    let all = engine.containers.all();
    let found = all.into_iter().find_map(|container| {
        let exec = container.execs().get(id).cloned();
        exec.map(|exec| (container, exec))
    });
    found.ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
}

/// Says where a further process is.
///
/// # Errors
/// 404.
pub async fn inspect(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let (container, exec) = find(&engine, &id)?;
    let phase = exec.phase();
    let (running, pid, code) = match phase {
        ExecPhase::Created | ExecPhase::Starting => (false, 0, None),
        ExecPhase::Running { pid } => (true, pid, None),
        ExecPhase::Exited { code, .. } => (false, 0, Some(code)),
    };
    let config = &exec.config;
    let command = config.cmd.clone().unwrap_or_default();
    Ok(Json(json!({
        "ID": exec.id,
        "Running": running,
        "ExitCode": code,
        "ProcessConfig": {
            "tty": exec.terminal(),
            "entrypoint": command.first(),
            "arguments": command.get(1..).unwrap_or_default(),
            "privileged": config.privileged.unwrap_or_default(),
            "user": config.user.clone().unwrap_or_default(),
        },
        "OpenStdin": config.attach_stdin.unwrap_or_default(),
        "OpenStderr": config.attach_stderr.unwrap_or_default(),
        "OpenStdout": config.attach_stdout.unwrap_or_default(),
        "CanRemove": false,
        "ContainerID": container.id,
        "DetachKeys": config.detach_keys.clone().unwrap_or_default(),
        "Pid": pid,
    })))
}
