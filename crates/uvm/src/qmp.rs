//! QEMU's machine protocol, as far as machines are made, frozen and watched with it.
//!
//! Source: QEMU, "QEMU Machine Protocol Specification" and "QEMU QMP Reference Manual".

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio_util::codec::{FramedRead, LinesCodec};

/// The longest line that QEMU may send; its answers here are far shorter, but for the console's 64 KiB.
const LONGEST_LINE_BYTES: usize = 1 << 20;

/// What went wrong with a command.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("{command}: {message}")]
    Refused {
        /// Which command.
        command: &'static str,
        /// What QEMU said.
        message: String,
    },
    /// QEMU is not there any more, or sent what is no QMP.
    #[error("the connection to qemu is lost")]
    Lost,
}

/// How a migration (saving or loading a state) ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigrationEnd {
    Completed,
    Failed,
}

/// Why QEMU says the guest stopped for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestEnd {
    /// The guest reset the machine (with `-no-reboot`: what its kernel does after a panic) or a processor shut down.
    Reset,
    /// The guest switched off.
    PowerOff,
    /// Somebody told QEMU.
    Host,
}

/// What was observed since the machine was started: events set it and nothing unsets it, so none is missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) migration: Option<MigrationEnd>,
    pub(crate) guest_end: Option<GuestEnd>,
    pub(crate) connection_lost: bool,
}

type Answer = oneshot::Sender<Result<Value, QmpError>>;

#[derive(Debug)]
struct Pending {
    command: &'static str,
    answer: Answer,
}

type PendingQueue = Arc<Mutex<Option<VecDeque<Pending>>>>;

/// A connection to one QEMU. Commands may be given from several tasks; they are answered in order.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: PendingQueue,
    observed: watch::Receiver<Observed>,
}

impl Qmp {
    /// Begins to speak. Commands can be given at once, before QEMU has greeted: the socket keeps them.
    pub(crate) fn connect(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let pending: PendingQueue = Arc::new(Mutex::new(Some(VecDeque::new())));
        let (sender, observed) = watch::channel(Observed::default());
        tokio::spawn(listen(reader, Arc::clone(&pending), sender));
        Self { writer: tokio::sync::Mutex::new(writer), pending, observed }
    }

    /// Gives a command together with a descriptor, and waits for its answer.
    pub(crate) async fn execute_with_descriptor(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        let line = line(command, &arguments);
        let writer = self.writer.lock().await;
        let answered = self.queue(command)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor];
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let bytes = [IoSlice::new(line.as_bytes())];
            Ok(sendmsg(writer.as_ref(), &bytes, &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        // A command is far shorter than a socket's buffer, so it goes as a whole.
        match writer.as_ref().async_io(Interest::WRITABLE, send).await {
            Ok(sent) if sent == line.len() => {}
            _ => return Err(QmpError::Lost),
        }
        drop(writer);
        answered.await.unwrap_or(Err(QmpError::Lost))
    }

    fn queue(&self, command: &'static str) -> Result<oneshot::Receiver<Result<Value, QmpError>>, QmpError> {
        let (answer, answered) = oneshot::channel();
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.as_mut().ok_or(QmpError::Lost)?.push_back(Pending { command, answer });
        Ok(answered)
    }

    /// Gives a command without waiting for its answer, so that several can be under way.
    pub(crate) async fn send(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<impl Future<Output = Result<Value, QmpError>> + use<>, QmpError> {
        let line = line(command, &arguments);
        let mut writer = self.writer.lock().await;
        let answered = self.queue(command)?;
        writer.write_all(line.as_bytes()).await.map_err(|_| QmpError::Lost)?;
        Ok(async move { answered.await.unwrap_or(Err(QmpError::Lost)) })
    }

    /// Gives a command and waits for its answer.
    pub(crate) async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.send(command, arguments).await?.await
    }

    /// What was observed so far, and changes to it.
    pub(crate) fn observe(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }

    /// Waits until a state is saved or loaded.
    pub(crate) async fn migration_end(&self) -> Result<MigrationEnd, QmpError> {
        let mut observed = self.observe();
        let seen = observed.wait_for(|seen| seen.migration.is_some() || seen.connection_lost).await;
        seen.map_err(|_| QmpError::Lost)?.migration.ok_or(QmpError::Lost)
    }
}

fn line(command: &'static str, arguments: &Value) -> String {
    let mut line = json!({"execute": command, "arguments": arguments}).to_string();
    line.push('\n');
    line
}

async fn listen(reader: OwnedReadHalf, pending: PendingQueue, observed: watch::Sender<Observed>) {
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_LINE_BYTES));
    while let Some(Ok(line)) = lines.next().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { break };
        if let Some(event) = message.get("event").and_then(Value::as_str) {
            observed.send_if_modified(|seen| note(seen, event, &message["data"]));
        } else if message.get("return").is_some() || message.get("error").is_some() {
            let next = pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(VecDeque::pop_front);
            let Some(Pending { command, answer }) = next else { break };
            // Whoever gave the command may have stopped waiting.
            let _ = answer.send(result_of(command, message));
        }
    }
    // Dropping the queue answers everybody who waits, and nobody can queue any more.
    pending.lock().unwrap_or_else(PoisonError::into_inner).take();
    observed.send_modify(|seen| seen.connection_lost = true);
}

fn result_of(command: &'static str, mut message: Value) -> Result<Value, QmpError> {
    match message.get("error") {
        Some(error) => {
            let message = error["desc"].as_str().unwrap_or("no description").chars().take(500).collect();
            Err(QmpError::Refused { command, message })
        }
        None => Ok(message["return"].take()),
    }
}

/// Takes an event into account. Returns whether it changed anything.
fn note(seen: &mut Observed, event: &str, data: &Value) -> bool {
    let before = *seen;
    match event {
        "MIGRATION" => match data["status"].as_str() {
            Some("completed") => seen.migration = Some(MigrationEnd::Completed),
            Some("failed" | "cancelled") => seen.migration = Some(MigrationEnd::Failed),
            _ => {}
        },
        "GUEST_PANICKED" => seen.guest_end = Some(GuestEnd::Reset),
        "SHUTDOWN" if seen.guest_end.is_none() => {
            seen.guest_end = Some(match data["reason"].as_str() {
                Some("guest-reset" | "guest-panic" | "subsystem-reset") => GuestEnd::Reset,
                Some("guest-shutdown") => GuestEnd::PowerOff,
                _ => GuestEnd::Host,
            });
        }
        _ => {}
    }
    *seen != before
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn answers_come_in_order_and_events_are_kept() {
        let (host, mut qemu) = UnixStream::pair().unwrap();
        let qmp = Qmp::connect(host);
        let first = qmp.send("one", json!({})).await.unwrap();
        let second = qmp.send("two", json!({})).await.unwrap();
        qemu.write_all(
            b"{\"QMP\": {}}\n{\"return\": {\"n\": 1}}\n\
              {\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n\
              {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n\
              {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n",
        )
        .await
        .unwrap();
        assert_eq!(first.await.unwrap()["n"], 1);
        assert!(matches!(second.await, Err(QmpError::Refused { command: "two", message }) if message == "no"));
        assert_eq!(qmp.migration_end().await.unwrap(), MigrationEnd::Completed);
        let mut observed = qmp.observe();
        let seen = *observed.wait_for(|seen| seen.guest_end.is_some()).await.unwrap();
        assert_eq!(seen.guest_end, Some(GuestEnd::Reset));
    }

    #[tokio::test]
    async fn garbage_and_end_of_file_are_a_lost_connection() {
        for garbage in [&b"not json\n"[..], b"", b"{\"return\": {}}\n{\"return\": {}}\n"] {
            let (host, mut qemu) = UnixStream::pair().unwrap();
            let qmp = Qmp::connect(host);
            let answer = qmp.send("one", json!({})).await.unwrap();
            qemu.write_all(garbage).await.unwrap();
            let mut sent = [0; 64];
            assert!(qemu.read(&mut sent).await.unwrap() > 0);
            drop(qemu);
            let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.unwrap();
            assert!(answer.is_ok() == garbage.starts_with(b"{"), "{answer:?}");
            assert!(matches!(qmp.migration_end().await, Err(QmpError::Lost)));
            assert!(matches!(qmp.execute("two", json!({})).await, Err(QmpError::Lost)));
        }
    }
}
