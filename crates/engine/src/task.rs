//! The engine's side of containerd's Task API: one shim, one container.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api as wire;
use containerd_shim_protos::protobuf::{MessageField, well_known_types::any::Any};
use containerd_shim_protos::shim_async::TaskClient;
use proto::network::NetworkUpdate;
use proto::notices::wire::WaitOomKillRequest;
use proto::notices::wire_ttrpc::NoticesClient;
use proto::{ErrorKind, Status};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

use crate::clock::Timestamp;

/// Bound of calls that look or signal.
const QUICK: Duration = Duration::from_secs(20);
/// Bound of Create: a first hyperv container boots and freezes its template in it.
const CREATE: Duration = Duration::from_secs(300);
/// Bound of calls that start a process or take one down.
const SLOW: Duration = Duration::from_secs(60);
/// Bound of a further process's start, which waits for a thousand others in the shim at worst.
const QUEUED: Duration = Duration::from_secs(600);

/// The fifos of a process; a path that is absent means `/dev/null`. With a terminal `stderr` is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// What the process reads.
    pub stdin: Option<PathBuf>,
    /// What it writes, or its terminal's output.
    pub stdout: Option<PathBuf>,
    /// What it writes to standard error.
    pub stderr: Option<PathBuf>,
    /// It has a terminal.
    pub terminal: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessExit {
    /// 0 to 255; killed by signal N is 128 + N.
    pub code: u32,
    /// When.
    pub at: Timestamp,
}

/// A shim that answers. Every method names a process: the container's first by an empty text, further ones by their
/// exec id. Errors carry the shim's kind; a connection that broke is [`ErrorKind::Unavailable`].
#[derive(Clone)]
pub struct Task {
    client: TaskClient,
    notices: NoticesClient,
    id: String,
}

fn bound(limit: Duration) -> Context {
    context::with_duration(limit)
}

fn path_text(path: Option<&PathBuf>) -> String {
    path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

fn failed(error: &ttrpc::Error) -> Status {
    Status::from_ttrpc(error)
}

type TaskResult<T> = Result<T, Status>;

/// What [`Task::shutdown`] ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOf {
    /// The shim, when its task has been deleted before.
    ShimOnly,
    /// The task too, whatever it does, and without a thought for the container's changes.
    TaskToo,
}

impl Task {
    /// Takes a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream, id: &str) -> Self {
        let client = Client::new(Socket::new(stream));
        Self { client: TaskClient::new(client.clone()), notices: NoticesClient::new(client), id: id.to_owned() }
    }

    /// Connects to a shim's socket.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when nobody listens there.
    pub async fn connect(socket: &Path, id: &str) -> TaskResult<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| Status::new(ErrorKind::Unavailable, format!("the shim does not answer: {error}")))?;
        Ok(Self::new(stream, id))
    }

    /// Makes the container, not started. Returns its first process' id.
    ///
    /// # Errors
    /// The shim's.
    pub async fn create(&self, bundle: &Path, stdio: &StdioPaths) -> TaskResult<u32> {
        let request = wire::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            terminal: stdio.terminal,
            stdin: path_text(stdio.stdin.as_ref()),
            stdout: path_text(stdio.stdout.as_ref()),
            stderr: path_text(stdio.stderr.as_ref()),
            ..Default::default()
        };
        Ok(self.client.create(bound(CREATE), &request).await.map_err(|e| failed(&e))?.pid)
    }

    /// Starts a created process. Returns its id.
    ///
    /// # Errors
    /// The shim's: [`ErrorKind::NotFound`] and [`ErrorKind::PermissionDenied`] speak of the command, and
    /// [`ErrorKind::ResourceExhausted`] of too many that wait to be started.
    pub async fn start(&self, exec: &str) -> TaskResult<u32> {
        let request = wire::StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        let limit = if exec.is_empty() { SLOW } else { QUEUED };
        Ok(self.client.start(bound(limit), &request).await.map_err(|e| failed(&e))?.pid)
    }

    /// Answers when the process has exited and its output is complete. When: any time after Create or Exec.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the shim went away first.
    pub async fn wait(&self, exec: &str) -> TaskResult<ProcessExit> {
        let request = wire::WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        let answer = self.client.wait(Context::default(), &request).await.map_err(|e| failed(&e))?;
        let at = answer.exited_at.as_ref().filter(|at| at.seconds > 0);
        let at = at.map(|at| Timestamp(at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos))));
        Ok(ProcessExit { code: answer.exit_status, at: at.unwrap_or_else(Timestamp::now) })
    }

    /// Answers when the kernel has killed more of the container's processes for want of memory than `seen`, with their number; with no
    /// greater one when the container has ended. When: once it was created.
    ///
    /// # Errors
    /// The shim's; [`ErrorKind::NotImplemented`] of an older one.
    pub async fn oom_kills_after(&self, seen: u64) -> TaskResult<u64> {
        let request = WaitOomKillRequest { id: self.id.clone(), seen, ..Default::default() };
        let answer = self.notices.wait_oom_kill(Context::default(), &request).await;
        Ok(answer.map_err(|e| failed(&e))?.kills)
    }

    /// Adds a process, not started. `process` is OCI's process object as JSON.
    ///
    /// # Errors
    /// The shim's.
    pub async fn exec(&self, exec: &str, stdio: &StdioPaths, process: Vec<u8>) -> TaskResult<()> {
        let spec = Any { type_url: PROCESS_TYPE_URL.into(), value: process, ..Default::default() };
        let request = wire::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: stdio.terminal,
            stdin: path_text(stdio.stdin.as_ref()),
            stdout: path_text(stdio.stdout.as_ref()),
            stderr: path_text(stdio.stderr.as_ref()),
            spec: MessageField::some(spec),
            ..Default::default()
        };
        self.client.exec(bound(SLOW), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the process is gone.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> TaskResult<()> {
        let request =
            wire::KillRequest { id: self.id.clone(), exec_id: exec.to_owned(), signal, all, ..Default::default() };
        self.client.kill(bound(QUICK), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Sets a terminal's size.
    ///
    /// # Errors
    /// The shim's.
    pub async fn resize(&self, exec: &str, width: u32, height: u32) -> TaskResult<()> {
        let request = wire::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width,
            height,
            ..Default::default()
        };
        self.client.resize_pty(bound(QUICK), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Ends a process' standard input. When: the writing end of its fifo was closed before.
    ///
    /// # Errors
    /// The shim's.
    pub async fn close_stdin(&self, exec: &str) -> TaskResult<()> {
        let request =
            wire::CloseIORequest { id: self.id.clone(), exec_id: exec.to_owned(), stdin: true, ..Default::default() };
        self.client.close_io(bound(QUICK), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Stops every process of the container from running.
    ///
    /// # Errors
    /// The shim's.
    pub async fn pause(&self) -> TaskResult<()> {
        let request = wire::PauseRequest { id: self.id.clone(), ..Default::default() };
        self.client.pause(bound(QUICK), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Undoes [`Task::pause`].
    ///
    /// # Errors
    /// The shim's.
    pub async fn resume(&self) -> TaskResult<()> {
        let request = wire::ResumeRequest { id: self.id.clone(), ..Default::default() };
        self.client.resume(bound(QUICK), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// The container's processes; those without details have their number only.
    ///
    /// # Errors
    /// The shim's.
    pub async fn processes(&self) -> TaskResult<Vec<wire::ProcessInfo>> {
        let request = wire::PidsRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.client.pids(bound(QUICK), &request).await.map_err(|e| failed(&e))?.processes)
    }

    /// The container's counters, as containerd's cgroup metrics.
    ///
    /// # Errors
    /// The shim's.
    pub async fn stats(&self) -> TaskResult<Any> {
        let request = wire::StatsRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.client.stats(bound(QUICK), &request).await.map_err(|e| failed(&e))?.stats.unwrap_or_default())
    }

    /// Sets limits. `resources` is OCI's `linux.resources` as JSON.
    ///
    /// # Errors
    /// The shim's.
    pub async fn update(&self, resources: Vec<u8>) -> TaskResult<()> {
        let any = Any { type_url: RESOURCES_TYPE_URL.into(), value: resources, ..Default::default() };
        let request =
            wire::UpdateTaskRequest { id: self.id.clone(), resources: MessageField::some(any), ..Default::default() };
        self.client.update(bound(QUICK), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Makes the network of a hyperv container that runs what it says.
    ///
    /// # Errors
    /// The shim's; the network is then as it was.
    pub async fn update_network(&self, update: &NetworkUpdate) -> TaskResult<()> {
        let value = serde_json::to_vec(update).map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
        let any = Any { type_url: NetworkUpdate::TYPE_URL.into(), value, ..Default::default() };
        let request =
            wire::UpdateTaskRequest { id: self.id.clone(), resources: MessageField::some(any), ..Default::default() };
        self.client.update(bound(SLOW), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Takes a stopped process away; without an exec id the container with everything that belongs to it.
    ///
    /// # Errors
    /// The shim's.
    pub async fn delete(&self, exec: &str) -> TaskResult<()> {
        let request = wire::DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.client.delete(bound(SLOW), &request).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Lets the shim exit. A shim that ends before it has answered has done what it was told.
    pub async fn shutdown(&self, end: EndOf) {
        let request = wire::ShutdownRequest { id: self.id.clone(), now: end == EndOf::TaskToo, ..Default::default() };
        if let Err(error) = self.client.shutdown(bound(QUICK), &request).await {
            tracing::debug!(id = self.id, %error, "shutdown of the shim");
        }
    }

    /// Process ids of the shim and of the container's first process.
    ///
    /// # Errors
    /// The shim's.
    pub async fn pids(&self) -> TaskResult<(u32, u32)> {
        self.pids_within(QUICK).await
    }

    /// As [`Task::pids`], for a shim that takes its time until it serves.
    ///
    /// # Errors
    /// The shim's.
    pub async fn pids_within(&self, limit: Duration) -> TaskResult<(u32, u32)> {
        let request = wire::ConnectRequest { id: self.id.clone(), ..Default::default() };
        let answer = self.client.connect(bound(limit), &request).await.map_err(|e| failed(&e))?;
        Ok((answer.shim_pid, answer.task_pid))
    }

    /// What the shim knows about the container's first process.
    ///
    /// # Errors
    /// The shim's.
    pub async fn state(&self) -> TaskResult<wire::StateResponse> {
        let request = wire::StateRequest { id: self.id.clone(), ..Default::default() };
        self.client.state(bound(QUICK), &request).await.map_err(|e| failed(&e))
    }
}

/// Source: containerd `typeurl`, registered for runtime-spec's `Process`.
const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Source: containerd `typeurl`, registered for runtime-spec's `LinuxResources`.
const RESOURCES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
