//! Asks a running container, again and again, whether it does its work.
//!
//! A container has one check under way at most. Its process has a name of its own in the shim, made from the container's
//! id, so that an engine that comes back finds and ends the one that the last engine left behind.

use std::sync::Arc;
use std::time::Duration;

use bollard::models::ExecConfig;
use tokio_util::task::AbortOnDropHandle;

use super::exec_start::Starter;
use super::kill::SIGKILL;
use crate::clock::{Timestamp, go_duration};
use crate::container::Container;
use crate::container::exec::{Exec, ExecPhase};
use crate::container::health::{Answer, Check, Health, HealthStatus, MAX_OUTPUT_BYTES};
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::output::Wanted;
use crate::streams::Attachment;
use crate::task::Task;

/// How long the end of a check that was killed is waited for.
const KILLED: Duration = Duration::from_secs(10);
/// Exit code of a check that gave none. Source: moby `daemon/health.go`.
const NO_CODE: i64 = -1;

/// A run begins: nothing is known of its health.
pub fn begin(container: &Container) -> ApiResult<()> {
    let check = Check::of(&container.config()?);
    let mut record = container.record();
    let before = record.health.take();
    record.health = check.map(|_| Health::starting(before));
    Ok(())
}

/// A run has ended, and nobody asks any more: unhealthy, as dockerd has it.
pub fn end(container: &Container) {
    if let Some(health) = &mut container.record().health {
        health.status = HealthStatus::Unhealthy;
    }
}

/// Asks in the background until the handle is dropped; none when the container has no check.
pub fn watch(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    task: &Task,
    started_at: Timestamp,
) -> Option<AbortOnDropHandle<()>> {
    let check = container.config().ok().and_then(|config| Check::of(&config))?;
    let (engine, container, task) = (Arc::clone(engine), Arc::clone(container), task.clone());
    let monitor = Monitor { engine, container, task, check, started_at };
    Some(AbortOnDropHandle::new(tokio::spawn(monitor.run())))
}

struct Monitor {
    engine: Arc<Engine>,
    container: Arc<Container>,
    task: Task,
    check: Check,
    started_at: Timestamp,
}

impl Monitor {
    async fn run(self) {
        self.end_leftover().await;
        loop {
            tokio::time::sleep(self.pause()).await;
            if self.container.record().phase.is_paused() {
                continue;
            }
            if let Some(answer) = self.ask().await {
                self.take(answer).await;
            }
        }
    }

    fn pause(&self) -> Duration {
        let mut record = self.container.record();
        let health = record.health.get_or_insert_with(|| Health::starting(None));
        health.pause(&self.check, self.started_at)
    }

    async fn take(&self, answer: Answer) {
        let changed = {
            let mut record = self.container.record();
            let health = record.health.get_or_insert_with(|| Health::starting(None));
            health.take(answer, &self.check, self.started_at).then_some(health.status)
        };
        let Some(status) = changed else { return };
        self.container.emit(&self.engine.events, format!("health_status: {}", status.word()), &[]);
        if let Err(error) = self.container.save().await {
            tracing::error!(id = %self.container.id, "{error}");
        }
    }

    /// Ends what the last engine was asking when it ended.
    async fn end_leftover(&self) {
        let id = self.exec_id();
        // There is none, most likely.
        if self.task.kill(&id, SIGKILL, false).await.is_ok() {
            let ended = tokio::time::timeout(KILLED, self.task.wait(&id)).await;
            tracing::debug!(id = %self.container.id, ended = ended.is_ok(), "ended a check of the last engine");
        }
        if let Err(error) = self.task.delete(&id).await {
            tracing::trace!(id = %self.container.id, %error, "no check was left behind");
        }
        self.starter(&self.exec()).remove_fifos();
    }

    fn exec_id(&self) -> String {
        format!("health-{}", self.container.id.as_str().get(..64).unwrap_or_default())
    }

    fn exec(&self) -> Arc<Exec> {
        let config = ExecConfig {
            cmd: Some(self.check.command.clone()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        Arc::new(Exec::new(self.exec_id(), config))
    }

    fn starter(&self, exec: &Arc<Exec>) -> Starter {
        Starter {
            engine: Arc::clone(&self.engine),
            container: Arc::clone(&self.container),
            exec: Arc::clone(exec),
            task: self.task.clone(),
            size: None,
            keeps_output: false,
        }
    }

    /// Asks once; none when the container was paused meanwhile, so that the answer says nothing.
    async fn ask(&self) -> Option<Answer> {
        let start = Timestamp::now();
        let exec = self.exec();
        let attachment = exec.streams.attach(Wanted { stdout: true, stderr: true });
        let action = format!("exec_create: {}", exec.command_line());
        self.container.emit(&self.engine.events, action, &[("execID", exec.id.clone())]);
        let (code, output) = match self.starter(&exec).start(Some(attachment)).await {
            Ok(Some(attachment)) => self.listen(&exec, attachment).await?,
            Ok(None) => return None,
            Err(error) => (NO_CODE, shorten(error.message.as_bytes())),
        };
        Some(Answer { start, end: Timestamp::now(), code, output })
    }

    async fn listen(&self, exec: &Exec, mut attachment: Attachment) -> Option<(i64, String)> {
        let mut said = Vec::new();
        let in_time = tokio::time::timeout(self.check.timeout, hear(&mut attachment, &mut said)).await.is_ok();
        if in_time {
            let code = match exec.phase() {
                ExecPhase::Exited { code, .. } => i64::from(code),
                _ => NO_CODE,
            };
            return Some((code, shorten(&said)));
        }
        let paused = self.container.record().phase.is_paused();
        if let Err(error) = self.task.kill(&exec.id, SIGKILL, false).await {
            tracing::debug!(id = %self.container.id, %error, "a check ended just before it was killed");
        }
        if tokio::time::timeout(KILLED, hear(&mut attachment, &mut said)).await.is_err() {
            tracing::warn!(id = %self.container.id, "a check does not end, although it was killed");
        }
        let text = format!("Health check exceeded timeout ({})", go_duration(self.check.timeout));
        let output = if said.is_empty() { text } else { format!("{text}: {}", shorten(&said)) };
        (!paused).then_some((NO_CODE, output))
    }
}

/// Hears a process to its end, and notes what is kept of it and one byte more.
async fn hear(attachment: &mut Attachment, said: &mut Vec<u8>) {
    while let Some(chunk) = attachment.output.recv().await {
        let room = (MAX_OUTPUT_BYTES + 1).saturating_sub(said.len());
        said.extend_from_slice(&chunk.bytes[..room.min(chunk.bytes.len())]);
    }
}

/// The beginning of what was said, as text.
fn shorten(said: &[u8]) -> String {
    match said.get(..MAX_OUTPUT_BYTES).filter(|_| said.len() > MAX_OUTPUT_BYTES) {
        Some(begin) => String::from_utf8_lossy(begin).into_owned() + "...",
        None => String::from_utf8_lossy(said).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut() {
        assert_eq!(shorten(b"short\n"), "short\n");
        let long = shorten(&[b'x'; MAX_OUTPUT_BYTES + 1]);
        assert_eq!((long.len(), long.ends_with("x...")), (MAX_OUTPUT_BYTES + 3, true));
        assert_eq!(shorten(&[b'x'; MAX_OUTPUT_BYTES]).len(), MAX_OUTPUT_BYTES);
    }
}
