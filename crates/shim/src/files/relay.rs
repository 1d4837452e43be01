//! Operations on the files of a hyperv container that runs: passed on to its guest, one substream each, as they are.
//!
//! The shim understands none of it. What the guest answers is the engine's to bound and to judge; how much of it lies here
//! is bounded by yamux's windows.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proto::control::FILES_SOCKET;
use proto::gcs::{StreamHeader, StreamKind};
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncWriteExt, BufReader, copy_buf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use uvm::{GuestConnection, GuestStream};

/// Bytes on their way, each way.
const BUFFER_BYTES: usize = 64 << 10;
/// Operations at once; further ones wait.
const OPERATIONS: usize = 16;

/// Relays operations until it is dropped.
pub struct FilesRelay(JoinHandle<()>);

impl Drop for FilesRelay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl FilesRelay {
    /// Listens in the bundle. When: within the runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(bundle: &Path, guest: GuestConnection) -> io::Result<Self> {
        let folder = rustix::fs::open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // A socket's path has 107 bytes, and a bundle's may need more.
        let path = format!("/proc/self/fd/{}/{FILES_SOCKET}", folder.as_raw_fd());
        let listener = StdListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self(tokio::spawn(accept(listener, guest))))
    }
}

async fn accept(listener: UnixListener, guest: GuestConnection) {
    let room = Arc::new(Semaphore::new(OPERATIONS));
    let number = AtomicU32::new(1);
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let engine = match listener.accept().await {
            Ok((engine, _)) => engine,
            Err(error) => {
                tracing::warn!(%error, "cannot take an operation on the container's files");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let header = StreamHeader { kind: StreamKind::Files, process: number.fetch_add(1, Ordering::Relaxed) };
        let guest = guest.clone();
        tokio::spawn(async move {
            match guest.open_stream(header).await {
                Ok(stream) => relay(engine, stream).await,
                Err(error) => tracing::warn!(%error, "the guest takes no operation on the container's files"),
            }
            drop(permit);
        });
    }
}

/// Passes bytes on both ways until the guest has said everything, or one side hangs up.
pub async fn relay(engine: UnixStream, guest: GuestStream) {
    let (from_engine, mut to_engine) = engine.into_split();
    let (from_guest, mut to_guest) = tokio::io::split(guest);
    let up = async {
        let copied = copy_buf(&mut BufReader::with_capacity(BUFFER_BYTES, from_engine), &mut to_guest).await;
        // The end of what the engine says is that of the substream, whichever side broke.
        let ended = to_guest.shutdown().await;
        copied.and(ended)
    };
    let down = async {
        let copied = copy_buf(&mut BufReader::with_capacity(BUFFER_BYTES, from_guest), &mut to_engine).await;
        copied.and(to_engine.shutdown().await)
    };
    tokio::pin!(up, down);
    let mut said = None;
    let answered = loop {
        tokio::select! {
            outcome = &mut up, if said.is_none() => said = Some(outcome),
            outcome = &mut down => break outcome,
        }
    };
    tracing::debug!(?said, ?answered, "an operation on the container's files is over");
}

/// A socket for the runtime.
pub fn into_tokio(socket: StdStream) -> io::Result<UnixStream> {
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}
