//! The connection to a guest compute service: yamux over the machine's port, ttrpc on the first substream, and raw
//! substreams for stdio.
//!
//! Everything that comes in is hostile. Frames are bounded by yamux (1 MiB) and ttrpc (4 MiB), what is not read by
//! yamux's windows; the guest may open no substream; anything that is no frame ends the connection. No path, id or
//! command is taken from an answer.

mod driver;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use proto::gcs::wire::{
    ConfigureNetworkRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse, Empty, ExecRequest,
    ExecResponse, MountRootRequest, PersonalizeRequest, PersonalizeResponse, ProcessesResponse, RenewRequest,
    ResizeRequest, SignalRequest, StartRequest, StatsResponse, SyncClockRequest, SyncClockResponse, UpdateRequest,
    WaitOomKillRequest, WaitOomKillResponse, WaitRequest, WaitResponse,
};
use proto::gcs::wire_ttrpc::GuestClient;
use proto::gcs::{StreamHeader, StreamKind};
use proto::{ErrorKind, Status};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::compat::Compat;
use ttrpc::context::Context as CallContext;

use driver::{MOST_SUBSTREAMS, Mux, Room};

/// How long a guest may take for what touches its disks or processes; far longer than needed on a busy host.
const WORK_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may take for a question.
const QUESTION_LIMIT: Duration = Duration::from_secs(15);
/// How long a substream may take to open and to take its header.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// How long others have to end when as many substreams are open as may be.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// A call to the guest, or a substream to it, that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// The guest answered that it cannot or will not. Hostile text, cut, control characters removed.
    #[error("{0}")]
    Refused(Status),
    /// The guest did not answer in time.
    #[error("the guest did not answer {call} within {} s", .limit.as_secs_f32())]
    Deadline {
        /// Which call.
        call: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// As many substreams are open as may be.
    #[error("too many processes run in the utility VM: {0} streams to it are open")]
    Crowded(usize),
    /// There is no connection any more.
    #[error("the connection to the guest is lost: {0}")]
    Lost(String),
}

impl GuestError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(status) => status.kind,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Crowded(_) => ErrorKind::ResourceExhausted,
            Self::Lost(_) => ErrorKind::Unavailable,
        }
    }

    /// The error as it crosses to another process.
    #[must_use]
    pub fn to_status(&self) -> Status {
        match self {
            Self::Refused(status) => status.clone(),
            other => Status::new(other.kind(), other.to_string()),
        }
    }
}

/// A connection to one guest. Clones share it. It ends with the machine.
#[derive(Clone)]
pub struct GuestConnection {
    client: GuestClient,
    mux: Arc<Mux>,
}

impl std::fmt::Debug for GuestConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestConnection").field("mux", &self.mux).finish_non_exhaustive()
    }
}

/// The calls differ only in names and types.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty, $limit:expr;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`GuestError`], any variant.
            pub async fn $name(&self, request: &$request) -> Result<$response, GuestError> {
                let limit: Option<Duration> = $limit;
                let call = self.client.$name(CallContext::default(), request);
                self.answer(stringify!($name), limit, call).await
            }
        )*
    };
}

impl GuestConnection {
    /// Begins to speak over a machine's port: yamux client, then the control substream.
    ///
    /// # Errors
    /// [`GuestError`] when the substream cannot be opened. The guest may not have run yet: nothing is awaited from it.
    pub async fn open(port: UnixStream) -> Result<Self, GuestError> {
        let mux = Arc::new(Mux::start(port));
        let control = open_substream(&mux, StreamHeader { kind: StreamKind::Control, process: 0 }).await?;
        let socket = ttrpc::r#async::transport::Socket::new(control);
        Ok(Self { client: GuestClient::new(ttrpc::r#async::Client::new(socket)), mux })
    }

    /// Opens a substream and writes its header. When: before the call that makes the process that it belongs to.
    ///
    /// # Errors
    /// [`GuestError::Crowded`], [`GuestError::Deadline`] or [`GuestError::Lost`].
    pub async fn open_stream(&self, header: StreamHeader) -> Result<GuestStream, GuestError> {
        open_substream(&self.mux, header).await
    }

    calls! {
        /// Mounts layers and scratch and creates the container.
        create_container(CreateContainerRequest) -> CreateContainerResponse, Some(WORK_LIMIT);
        /// Mounts layers and scratch, and creates nothing.
        mount_root(MountRootRequest) -> Empty, Some(WORK_LIMIT);
        /// Starts the created container's process.
        start(StartRequest) -> Empty, Some(WORK_LIMIT);
        /// Starts one more process.
        exec(ExecRequest) -> ExecResponse, Some(WORK_LIMIT);
        /// Waits, without limit, until a process has exited and its output is in its streams.
        wait(WaitRequest) -> WaitResponse, None;
        /// Waits, without limit, for more kills for want of memory in a container, or for its end.
        wait_oom_kill(WaitOomKillRequest) -> WaitOomKillResponse, None;
        /// Signals one process or all.
        signal(SignalRequest) -> Empty, Some(QUESTION_LIMIT);
        /// Sets a terminal's size.
        resize(ResizeRequest) -> Empty, Some(QUESTION_LIMIT);
        /// Lists the container's processes.
        processes(ContainerRequest) -> ProcessesResponse, Some(QUESTION_LIMIT);
        /// Reads the container's use of resources.
        stats(ContainerRequest) -> StatsResponse, Some(QUESTION_LIMIT);
        /// Changes the container's limits.
        update(UpdateRequest) -> Empty, Some(QUESTION_LIMIT);
        /// Ends one of a pod's containers and unmounts its scratch.
        remove_container(ContainerRequest) -> Empty, Some(QUESTION_LIMIT);
        /// Ends every container and unmounts their scratch disks.
        shutdown(Empty) -> Empty, Some(QUESTION_LIMIT);
        /// Makes its network another one.
        configure_network(ConfigureNetworkRequest) -> Empty, Some(QUESTION_LIMIT);
        /// Ends a rehearsal; the guest is blank again afterwards.
        renew(RenewRequest) -> Empty, Some(WORK_LIMIT);
    }

    /// Sends the first message to a fork; see [`crate::personalize`].
    pub(crate) async fn personalize(
        &self,
        request: &PersonalizeRequest,
        limit: Duration,
    ) -> Result<PersonalizeResponse, GuestError> {
        let call = self.client.personalize(CallContext::default(), request);
        self.answer("personalize", Some(limit), call).await
    }

    pub(crate) async fn sync_clock(
        &self,
        request: &SyncClockRequest,
        limit: Duration,
    ) -> Result<SyncClockResponse, GuestError> {
        let call = self.client.sync_clock(CallContext::default(), request);
        self.answer("sync_clock", Some(limit), call).await
    }

    async fn answer<T>(
        &self,
        call: &'static str,
        limit: Option<Duration>,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, GuestError> {
        let late = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = answer => answer.map_err(|error| self.explain(&error)),
            reason = self.mux.ended() => Err(GuestError::Lost(reason)),
            () = late => Err(GuestError::Deadline { call, limit: limit.unwrap_or_default() }),
        }
    }

    fn explain(&self, error: &ttrpc::Error) -> GuestError {
        if let Some(reason) = self.mux.reason() {
            return GuestError::Lost(reason);
        }
        let mut status = Status::from_ttrpc(error);
        status.message = harmless(&status.message);
        match error {
            ttrpc::Error::RpcStatus(_) => GuestError::Refused(status),
            _ => GuestError::Lost(status.message),
        }
    }
}

/// Text from the guest, fit to be shown.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(2000).collect()
}

async fn open_substream(mux: &Mux, header: StreamHeader) -> Result<GuestStream, GuestError> {
    let room = tokio::select! {
        room = tokio::time::timeout(ROOM_LIMIT, mux.room()) => room.map_err(|_| GuestError::Crowded(MOST_SUBSTREAMS))?,
        reason = mux.ended() => return Err(GuestError::Lost(reason)),
    };
    let open = async {
        let mut stream = GuestStream { substream: mux.open().await.map_err(GuestError::Lost)?, _room: room };
        let written = stream.write_all(&header.encode()).await;
        written.map_err(|error| GuestError::Lost(mux.reason().unwrap_or_else(|| error.to_string())))?;
        Ok(stream)
    };
    let late = |_| GuestError::Deadline { call: "a new substream", limit: OPEN_LIMIT };
    tokio::time::timeout(OPEN_LIMIT, open).await.map_err(late)?
}

/// One substream to the guest: a byte stream with flow control. Shutting down its write side is the end of the file that
/// the guest reads.
#[derive(Debug)]
pub struct GuestStream {
    substream: Compat<yamux::Stream>,
    /// Dropped after the substream.
    _room: Room,
}

impl AsyncRead for GuestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.substream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.substream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.substream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.substream).poll_shutdown(cx)
    }
}
