//! Further processes in a running container.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::models::ExecConfig;

use super::lock;
use super::record::CODE_UNKNOWN;
use crate::clock::Timestamp;
use crate::error::{ApiError, ApiResult};
use crate::streams::Streams;

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
    /// A process that was asked for.
    #[must_use]
    pub fn new(id: String, config: ExecConfig) -> Self {
        Self { id, config, streams: Arc::default(), phase: Mutex::new(ExecPhase::Created) }
    }

    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> ExecPhase {
        *lock(&self.phase)
    }

    /// It ended so long ago that nobody asks for it any more.
    #[must_use]
    pub fn is_old(&self) -> bool {
        matches!(self.phase(), ExecPhase::Exited { at, .. } if at.elapsed() > KEPT)
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
        matches!(self.phase(), ExecPhase::Running { .. })
    }

    /// Begins its one start.
    ///
    /// # Errors
    /// 409 when it was started before.
    pub fn begin(&self) -> ApiResult<()> {
        let mut phase = lock(&self.phase);
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
        *lock(&self.phase) = ExecPhase::Running { pid };
    }

    /// It ended, or could not be started.
    pub fn ended(&self, code: u32) {
        *lock(&self.phase) = ExecPhase::Exited { code, at: Timestamp::now() };
    }

    /// The container ended, and everything in it with it.
    pub fn container_ended(&self) {
        let mut phase = lock(&self.phase);
        if matches!(*phase, ExecPhase::Running { .. } | ExecPhase::Starting) {
            *phase = ExecPhase::Exited { code: CODE_UNKNOWN, at: Timestamp::now() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_starts_once() {
        let config = ExecConfig { cmd: Some(vec!["a".into(), "b".into()]), ..ExecConfig::default() };
        let exec = Exec::new("x".into(), config);
        exec.begin().unwrap();
        assert_eq!(exec.begin().unwrap_err().message, "exec x is already running");
        exec.started(7);
        assert!(exec.is_running());
        exec.container_ended();
        assert_eq!(exec.begin().unwrap_err().message, "exec x has already run");
        assert_eq!(exec.command_line(), "a b");
    }
}
