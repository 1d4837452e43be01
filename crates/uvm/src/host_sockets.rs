//! The host's side of a machine's socket device: connects programs of the host with programs of its guest, by Firecracker's rules, so
//! that what speaks to its guests speaks to ours.
//!
//! ```text
//! vsock.sock     a program connects and writes "CONNECT <port>\n"; it reads "OK <port>\n", or the end, and then speaks to the guest
//! vsock.sock_P   a program listens; whoever in the guest connects to the host's port P speaks to it
//! ```
//!
//! Here streams are found and handed on, never read behind that first line. What the VMM asks is its guest's word: a number.
//!
//! Source: Firecracker docs/vsock.md.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::vsock::VSOCK_SOCKET;
use rustix::fs::{AtFlags, Mode, OFlags, chmodat, unlinkat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use vmm::protocol::socket::{FromDevice, ToDevice};
use vmm::protocol::{receive, send};

use crate::sys;

/// Programs that have connected and not said where to; further ones wait.
const MOST_UNDECIDED: usize = 32;
/// How long one may take to say it.
const DECISION_LIMIT: Duration = Duration::from_secs(10);
/// The longest first line: `CONNECT 4294967295\n`.
const LINE_BYTES: usize = 19;
/// Connections that wait to be taken.
const BACKLOG: i32 = 64;

/// Connects both sides until it is dropped; then nothing new, while streams that are there stay.
#[derive(Debug)]
pub struct HostSockets {
    tasks: [JoinHandle<()>; 2],
    folder: Arc<OwnedFd>,
}

impl Drop for HostSockets {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // With the folder it goes anyway.
        let _ = unlinkat(&self.folder, VSOCK_SOCKET, AtFlags::empty());
    }
}

impl HostSockets {
    /// Listens in a folder, for root alone, for a device at the other end of `device`. When: within the runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn serve(device: OwnedFd, folder: &Path) -> io::Result<Self> {
        let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let folder = Arc::new(folder);
        let listener = listener(&folder)?;
        rustix::io::ioctl_fionbio(&device, true)?;
        let device = Arc::new(sys::watch(device)?);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&device)));
        let asked = tokio::spawn(answer(device, Arc::clone(&folder)));
        Ok(Self { tasks: [accepting, asked], folder })
    }
}

/// A path of a socket has 107 bytes, and that of its folder may need more.
fn path_in(folder: &OwnedFd, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())
}

fn listener(folder: &OwnedFd) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path_in(folder, VSOCK_SOCKET))?)?;
    // Nobody can connect before it listens.
    chmodat(folder, VSOCK_SOCKET, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Takes programs that connect, and hands each on when it has said where to.
async fn accept(listener: UnixListener, device: Arc<AsyncFd<OwnedFd>>) {
    let mut undecided = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if undecided.len() < MOST_UNDECIDED => match accepted {
                Ok((program, _)) => {
                    let device = Arc::clone(&device);
                    undecided.spawn(async move {
                        let connected = tokio::time::timeout(DECISION_LIMIT, connect(program, &device)).await;
                        match connected {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => tracing::info!(%error, "a program is not connected with a guest"),
                            Err(_) => tracing::info!("a program that wanted to connect with a guest did not say where to"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a program that wants to connect with a guest");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = undecided.join_next() => {}
        }
    }
}

async fn connect(mut program: UnixStream, device: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut line = Vec::with_capacity(LINE_BYTES);
    // Byte by byte: what is behind the line is the guest's.
    while line.last() != Some(&b'\n') {
        if line.len() == LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no CONNECT line"));
        }
        line.push(program.read_u8().await?);
    }
    let port = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("CONNECT ")?.trim_end().parse().ok());
    let port = port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CONNECT line"))?;
    tell(device, &ToDevice::Connect { port }, Some(program)).await
}

/// Answers what the device asks, one after the other: nothing here waits for anybody but the device.
async fn answer(device: Arc<AsyncFd<OwnedFd>>, folder: Arc<OwnedFd>) {
    loop {
        let asked = device.async_io(Interest::READABLE, |socket| receive::<FromDevice>(socket)).await;
        let (port, number) = match asked {
            Ok(Some((FromDevice::Wanted { port, number }, _))) => (port, number),
            // The machine has ended.
            Ok(None) => return,
            Err(error) => {
                tracing::info!(%error, "a machine's socket device says nothing any more");
                return;
            }
        };
        // It is refused at once where nobody listens, or too many wait.
        let program = UnixStream::connect(path_in(&folder, &format!("{VSOCK_SOCKET}_{port}"))).await;
        let program = program.inspect_err(|error| tracing::debug!(port, %error, "nobody listens for a guest")).ok();
        if let Err(error) = tell(&device, &ToDevice::Answer { number }, program).await {
            tracing::info!(%error, "a machine's socket device hears nothing any more");
            return;
        }
    }
}

async fn tell(device: &AsyncFd<OwnedFd>, message: &ToDevice, program: Option<UnixStream>) -> io::Result<()> {
    let program = program.map(UnixStream::into_std).transpose()?;
    let beside: Vec<BorrowedFd<'_>> = program.iter().map(|program| program.as_fd()).collect();
    device.async_io(Interest::WRITABLE, |socket| send(socket, message, &beside)).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};

    use rustix::net::socketpair;

    use super::*;

    fn device() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn programs_of_the_host_are_handed_to_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = device();
        let sockets = HostSockets::serve(theirs, folder.path()).unwrap();
        let path = folder.path().join(VSOCK_SOCKET);
        let kind = std::fs::metadata(&path).unwrap();
        assert!(kind.file_type().is_socket() && kind.permissions().mode() & 0o777 == 0o600);
        let mut program = StdStream::connect(&path).unwrap();
        program.write_all(b"CONNECT 52\nand more").unwrap();
        let (message, mut streams) = receive::<ToDevice>(&ours).unwrap().unwrap();
        assert_eq!((message, streams.len()), (ToDevice::Connect { port: 52 }, 1));
        let mut stream = StdStream::from(streams.remove(0));
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"and more", "what is behind the line is still there");
        // What says something else is let go.
        for wrong in [&b"GET / HTTP/1.1\n"[..], b"CONNECT x\n", b"CONNECT 4294967296\n", &[b'1'; 100]] {
            let mut program = StdStream::connect(&path).unwrap();
            program.write_all(wrong).unwrap();
            // Let go with bytes that were not read, it may be a reset.
            assert_eq!(program.read(&mut [0]).unwrap_or(0), 0);
        }
        drop(sockets);
        assert!(!path.exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_listens_is_found_by_the_port() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = device();
        let _sockets = HostSockets::serve(theirs, folder.path()).unwrap();
        let listener = StdListener::bind(folder.path().join("vsock.sock_7")).unwrap();
        for (port, found) in [(7, 1), (8, 0)] {
            send(&ours, &FromDevice::Wanted { port, number: port + 100 }, &[]).unwrap();
            let (message, streams) = receive::<ToDevice>(&ours).unwrap().unwrap();
            assert_eq!((message, streams.len()), (ToDevice::Answer { number: port + 100 }, found));
        }
        listener.accept().unwrap();
    }
}
