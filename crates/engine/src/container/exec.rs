//! Further processes in a running container: `POST /containers/{id}/exec` and `GET /exec/{id}/json`.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use bollard::models::ExecConfig;
use serde_json::{Value, json};

use super::{Container, lock, names};
use crate::body;
use crate::clock::Timestamp;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::streams::Streams;
use crate::streams::hijack::parse_detach_keys;

/// How long an exec that has ended can still be asked for its exit code.
const KEPT: Duration = Duration::from_secs(300);

/// Where a further process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecPhase {
    /// Asked for, not started.
    Created,
    /// Somebody is starting it.
    Starting,
    /// It runs.
    Running {
        /// Its process id, of the host or of the guest.
        pid: u32,
    },
    /// It ended, or could not be started.
    Exited {
        /// Its exit code.
        code: u32,
        /// When.
        at: Timestamp,
    },
}

/// A further process.
pub struct Exec {
    /// Its identifier, 64 hexadecimal digits.
    pub id: String,
    /// What the client asked for.
    pub config: ExecConfig,
    /// Attached clients.
    pub streams: Arc<Streams>,
    phase: Mutex<ExecPhase>,
}

impl Exec {
    fn phase(&self) -> MutexGuard<'_, ExecPhase> {
        lock(&self.phase)
    }

    /// It has a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.config.tty.unwrap_or_default()
    }

    /// The command on one line, as events show it.
    #[must_use]
    pub fn command_line(&self) -> String {
        self.config.cmd.clone().unwrap_or_default().join(" ")
    }

    /// It runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(*self.phase(), ExecPhase::Running { .. })
    }

    /// Begins its one start.
    ///
    /// # Errors
    /// 409 when it was started before.
    pub fn begin(&self) -> ApiResult<()> {
        let mut phase = self.phase();
        match *phase {
            ExecPhase::Created => {
                *phase = ExecPhase::Starting;
                Ok(())
            }
            ExecPhase::Starting | ExecPhase::Running { .. } => {
                Err(ApiError::conflict(format!("exec {} is already running", self.id)))
            }
            ExecPhase::Exited { .. } => Err(ApiError::conflict(format!("exec {} has already run", self.id))),
        }
    }

    /// It runs now.
    pub fn started(&self, pid: u32) {
        *self.phase() = ExecPhase::Running { pid };
    }

    /// It ended, or could not be started.
    pub fn ended(&self, code: u32) {
        *self.phase() = ExecPhase::Exited { code, at: Timestamp::now() };
    }

    /// The container ended, and everything in it with it.
    pub fn container_ended(&self) {
        let mut phase = self.phase();
        if matches!(*phase, ExecPhase::Running { .. } | ExecPhase::Starting) {
            *phase = ExecPhase::Exited { code: super::shim::CODE_UNKNOWN, at: Timestamp::now() };
        }
    }
}

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
        return Err(ApiError::conflict(format!("container {id} is paused, unpause the container before exec")));
    }
    let exec_id = hex::encode(names::random::<32>()?);
    let exec = Exec {
        id: exec_id.clone(),
        config,
        streams: Arc::default(),
        phase: Mutex::new(ExecPhase::Created),
    };
    let action = format!("exec_create: {}", exec.command_line());
    {
        let mut execs = container.execs();
        execs.retain(|_, exec| !is_old(*exec.phase()));
        execs.insert(exec_id.clone(), Arc::new(exec));
    }
    container.emit(&engine, action, &[("execID", exec_id.clone())]);
    Ok((StatusCode::CREATED, Json(json!({ "Id": exec_id }))))
}

fn is_old(phase: ExecPhase) -> bool {
    matches!(phase, ExecPhase::Exited { at, .. } if at.elapsed() > KEPT)
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
    let phase = *exec.phase();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_starts_once() {
        let exec = Exec {
            id: "x".into(),
            config: ExecConfig { cmd: Some(vec!["a".into(), "b".into()]), ..ExecConfig::default() },
            streams: Arc::default(),
            phase: Mutex::new(ExecPhase::Created),
        };
        exec.begin().unwrap();
        assert_eq!(exec.begin().unwrap_err().message, "exec x is already running");
        exec.started(7);
        assert!(exec.is_running());
        exec.container_ended();
        assert_eq!(exec.begin().unwrap_err().message, "exec x has already run");
        assert_eq!(exec.command_line(), "a b");
    }
}
