//! A process of a container in a utility VM, as the host sees it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proto::gcs::wire;
use proto::gcs::{StreamHeader, StreamKind};
use proto::{ErrorKind, Status};
use uvm::{ExitReason, GuestConnection, GuestError, VmExit};

use super::worker::Worker;
use crate::compute::{ExecRequest, Process};
use crate::plan::{Plan, Seat};
use crate::state::Exit;
use crate::stdio::{Fifos, ProcessEnds, StdioPaths, Streams};
use crate::{clock, terminal};

/// How long after the loss of its connection a VM may take to say why it ended.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The caller's side of a process's streams.
pub struct Caller<'a> {
    /// Where they are.
    pub stdio: &'a StdioPaths,
    /// Opened.
    pub fifos: Fifos,
}

/// Opens a process's streams in the guest, which must happen before the process is made, and copies them from now on.
///
/// # Errors
/// What guest or fifos say.
async fn open_streams(
    guest: &GuestConnection,
    process: u32,
    fifos: Fifos,
    stdio: &StdioPaths,
) -> Result<Streams, Status> {
    let open = async |kind| {
        let stream = guest.open_stream(StreamHeader { kind, process }).await;
        stream.map_err(|error: GuestError| error.to_status())
    };
    let mut ends = ProcessEnds::default();
    if fifos.has_stdin() {
        ends.stdin = Some(Box::pin(open(StreamKind::Stdin).await?));
    }
    if stdio.terminal || !stdio.stdout.is_empty() {
        ends.stdout = Some(Box::pin(open(StreamKind::Stdout).await?));
    }
    if !stdio.terminal && !stdio.stderr.is_empty() {
        ends.stderr = Some(Box::pin(open(StreamKind::Stderr).await?));
    }
    fifos.copy(ends).map_err(|error| Status {
        kind: ErrorKind::Internal,
        message: "cannot copy the process's streams".to_owned(),
        causes: vec![error.to_string()],
    })
}

/// A process within a utility VM.
pub struct GuestProcess {
    number: u32,
    /// A container's first process: its end is the container's.
    is_first: bool,
    pid: u32,
    terminal: bool,
    worker: Arc<Worker>,
    guest: GuestConnection,
    streams: Streams,
}

impl GuestProcess {
    /// Creates a container in a VM; its first process then waits to be started.
    ///
    /// # Errors
    /// What the specification, the streams or the guest say.
    pub async fn create(
        worker: &Arc<Worker>,
        id: &str,
        plan: &Plan,
        seat: &Seat,
        caller: Caller<'_>,
    ) -> Result<Self, Status> {
        let guest = worker.vm.guest();
        let Caller { stdio, fifos } = caller;
        let has_stdin = fifos.has_stdin();
        let streams = open_streams(guest, seat.process, fifos, stdio).await?;
        let request = plan.container_request(seat, id, stdio.terminal, has_stdin)?;
        guest.create_container(&request).await.map_err(|error| error.to_status())?;
        Ok(Self {
            number: seat.process,
            is_first: true,
            pid: worker.pid(),
            terminal: stdio.terminal,
            worker: Arc::clone(worker),
            guest: guest.clone(),
            streams,
        })
    }

    /// Starts one more process in a container.
    ///
    /// # Errors
    /// What the streams or the guest say; `NotFound` and `PermissionDenied` mean the command.
    pub async fn exec(worker: &Arc<Worker>, container: u32, exec: ExecRequest) -> Result<Self, Status> {
        let ExecRequest { process, stdio } = exec;
        let (number, guest) = (worker.next_process(), worker.vm.guest());
        let fifos = Fifos::open(&stdio).await.map_err(|error| Status::from_error(error.kind(), &error))?;
        let has_stdin = fifos.has_stdin();
        let streams = open_streams(guest, number, fifos, &stdio).await?;
        let (width, height) = terminal::console_size(&process);
        let mut request = wire::ExecRequest::new();
        request.container = container;
        request.process = number;
        request.spec =
            serde_json::to_vec(&process).map_err(|error| Status::from_error(ErrorKind::InvalidArgument, &error))?;
        request.terminal = stdio.terminal;
        request.width = u32::from(width);
        request.height = u32::from(height);
        request.stdin = has_stdin;
        let response = guest.exec(&request).await.map_err(|error| error.to_status())?;
        Ok(Self {
            number,
            is_first: false,
            pid: response.pid,
            terminal: stdio.terminal,
            worker: Arc::clone(worker),
            guest: guest.clone(),
            streams,
        })
    }

    /// Sends a signal to it, or to every process of its container.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn send_signal(&self, signal: i32, all: bool) -> Result<(), Status> {
        let mut request = wire::SignalRequest::new();
        request.process = self.number;
        request.signal = u32::try_from(signal).unwrap_or(0);
        request.all = all;
        let sent = self.guest.signal(&request).await.map(drop).map_err(|error| error.to_status());
        match sent {
            // SIGKILL is never refused: a guest that does not answer dies with its container.
            Err(status)
                if signal == libc::SIGKILL
                    && self.is_first
                    && matches!(status.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) =>
            {
                tracing::warn!(%status, "the guest does not take SIGKILL; killing its VM");
                self.worker.vm.kill();
                Ok(())
            }
            sent => sent,
        }
    }
}

/// How a VM's own end looks as its container's exit.
#[must_use]
pub fn exit_of_vm(end: &VmExit) -> Exit {
    // A signal's number is in the low 7 bits of a wait status. Source: wait(2).
    let killed = |status: i32| status & 0x7f == libc::SIGKILL;
    let (code, what) = match end.reason {
        ExitReason::GuestPanic => (255, "the utility VM's kernel panicked"),
        ExitReason::Killed => (137, "the utility VM was killed"),
        ExitReason::Exited(Some(status)) if killed(status) => (137, "the utility VM's VMM was killed"),
        ExitReason::Shutdown => (255, "the utility VM shut down"),
        ExitReason::Exited(_) => (255, "the utility VM's VMM ended"),
    };
    let error = if end.detail.is_empty() { what.to_owned() } else { format!("{what}: {}", end.detail) };
    Exit { code, at_ns: clock::now_ns(), oom_kills: 0, error: Some(error) }
}

#[async_trait]
impl Process for GuestProcess {
    fn pid(&self) -> u32 {
        self.pid
    }

    async fn signal(&self, signal: i32) -> Result<(), Status> {
        self.send_signal(signal, false).await
    }

    async fn resize(&self, width: u32, height: u32) -> Result<(), Status> {
        if !self.terminal {
            return Err(Status::new(ErrorKind::FailedPrecondition, "the process has no terminal"));
        }
        let mut request = wire::ResizeRequest::new();
        request.process = self.number;
        request.width = width;
        request.height = height;
        self.guest.resize(&request).await.map(drop).map_err(|error| error.to_status())
    }

    fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    async fn exited(&self) -> Exit {
        let mut request = wire::WaitRequest::new();
        request.process = self.number;
        let answer = tokio::select! {
            biased;
            answer = self.guest.wait(&request) => answer,
            end = self.worker.vm.wait() => return exit_of_vm(&end),
        };
        match answer {
            Ok(response) => Exit {
                // Everything from the guest is hostile input.
                code: response.exit_code.min(255),
                at_ns: clock::now_ns(),
                oom_kills: if self.is_first { response.oom_kills } else { 0 },
                error: None,
            },
            Err(error) => {
                tracing::warn!(%error, process = self.number, "the guest does not say how a process ended");
                if let Ok(end) = tokio::time::timeout(LAST_WORDS, self.worker.vm.wait()).await {
                    return exit_of_vm(&end);
                }
                // A guest that runs and does not talk is of no use to anybody.
                self.worker.vm.kill();
                let error = Some(format!("the utility VM's guest was lost: {error}"));
                Exit { code: 255, at_ns: clock::now_ns(), oom_kills: 0, error }
            }
        }
    }

    async fn output_complete(&self) {
        self.streams.complete().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_end_is_told_with_its_reason() {
        let end = |reason, detail: &str| exit_of_vm(&VmExit { reason, detail: detail.to_owned() });
        let exit = end(ExitReason::GuestPanic, "sysrq triggered crash");
        assert_eq!((exit.code, exit.oom_kills), (255, 0));
        assert_eq!(exit.error.unwrap(), "the utility VM's kernel panicked: sysrq triggered crash");
        let exit = end(ExitReason::Killed, "");
        assert_eq!((exit.code, exit.error.as_deref()), (137, Some("the utility VM was killed")));
        assert_eq!(end(ExitReason::Exited(Some(libc::SIGKILL)), "").code, 137);
        assert_eq!(end(ExitReason::Exited(Some(1 << 8)), "").code, 255);
        assert_eq!(end(ExitReason::Exited(None), "").code, 255);
    }
}
