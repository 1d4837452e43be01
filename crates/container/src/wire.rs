//! What a caller and its helper say to each other, over a socket pair: one request and one answer, each a length, a body in
//! JSON, and file descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, LinuxPersonality, Process};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::{CommandError, SetupError};

/// A message that did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("socket")]
    Socket(#[from] io::Error),
    /// The body is not what was expected.
    #[error("malformed message")]
    Malformed(#[from] serde_json::Error),
    /// The body is longer than any true one.
    #[error("message of {0} bytes")]
    TooLong(usize),
}

/// What a helper is asked to do. Each says which file descriptors come with it, in order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Create a container. With it: the launch pipe's writing end, then the streams.
    Create(Box<CreateRequest>),
    /// Start a further process. With it: the first process' pidfd, then the streams.
    Exec(Box<ExecRequest>),
    /// Make a zygote. With it: the zygote's socket, then the folder of its cgroup, in version 2's hierarchy.
    Zygote(ZygoteRequest),
}

/// Which standard streams have a file descriptor of their own, in the order in which they are passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// See [`Request::Create`].
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Folder in which libcontainer makes a folder named as the container for its state.
    pub state: PathBuf,
    pub id: String,
    /// Folder with the `config.json` to use as it is.
    pub bundle: PathBuf,
    /// Absent for a terminal.
    pub streams: Option<Streams>,
    /// Who owns the terminal.
    pub user_id: u32,
    pub width: u16,
    pub height: u16,
    /// The container gets a network namespace of its own, in which nobody else will bring up the loopback device.
    pub new_network: bool,
    pub confinement: Confinement,
}

/// What a container's first process takes upon itself last of all, because it cannot be taken back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Confinement {
    /// File with the seccomp filter.
    pub seccomp: Option<PathBuf>,
    /// The capabilities in the end, where `config.json` has more, without which no filter could be loaded.
    pub capabilities: Option<LinuxCapabilities>,
}

/// See [`Request::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    pub process: Process,
    /// File with the seccomp filter.
    pub seccomp: Option<PathBuf>,
    pub personality: Option<LinuxPersonality>,
    /// Namespaces to join, as clone(2)'s flags.
    pub namespaces: u32,
    /// The container's cgroups, one folder per hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// Absent for a terminal.
    pub streams: Option<Streams>,
    pub width: u16,
    pub height: u16,
}

/// See [`Request::Zygote`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ZygoteRequest {
    /// An existing folder, below which it makes its mounts.
    pub stage: PathBuf,
}

/// What a zygote is to become, on its socket. With it: the mount of the container's root, then the streams. Two bodies follow:
/// a [`crate::Specialization`] in JSON, and the seccomp filter's bytes (none for an unconfined container).
#[derive(Debug, Serialize, Deserialize)]
pub struct SpecializeRequest {
    /// Absent for a terminal.
    pub streams: Option<Streams>,
    pub width: u16,
    pub height: u16,
}

/// What a zygote says on its socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum ZygoteReport {
    /// Its mounts are there, and it waits for a request.
    Ready,
    /// With it: the terminal's master.
    Terminal,
    /// It is a container's first process, and waits for one byte to execute the command.
    Created,
    /// The command cannot be run; it ends.
    Command(CommandError),
    /// The image or the request is at fault; it ends.
    Refused(SetupError),
    /// A step failed; it ends.
    Failed(SetupError),
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The process is there. With it: the terminal's master, if there is one.
    Started { pid: u32 },
    /// Its command cannot be run. `pid` is a process of the caller's that has ended, or is about to.
    Command { error: CommandError, pid: Option<u32> },
    /// Something else went wrong.
    Failed { error: SetupError, pid: Option<u32> },
}

/// An answer with what goes with it: the terminal's master.
pub struct Outcome {
    pub answer: Answer,
    pub terminal: Option<OwnedFd>,
}

/// The three standard streams as the request brought them.
#[derive(Debug, Default)]
pub struct StreamFds {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl StreamFds {
    /// Takes the descriptors in the order of the request.
    pub fn take(streams: Streams, fds: &mut impl Iterator<Item = OwnedFd>) -> Self {
        let mut next = |present: bool| if present { fds.next() } else { None };
        Self { stdin: next(streams.stdin), stdout: next(streams.stdout), stderr: next(streams.stderr) }
    }

    /// Those that are there.
    pub fn each(&self) -> impl Iterator<Item = &OwnedFd> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten()
    }
}

/// The longest body. A command line takes up to 2 MiB.
const BODY_LIMIT: usize = 16 << 20;
/// Most file descriptors in one message.
const MOST_FDS: usize = 5;

/// Writes one message.
pub fn send(socket: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let body = serde_json::to_vec(message)?;
    if fds.is_empty() {
        return send_body(socket, &body);
    }
    let head = head(&body)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(WireError::Socket(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    // A stream socket takes these four bytes as a whole: its buffer is empty.
    let sent = sendmsg(socket, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
    if sent != head.len() {
        return Err(WireError::Socket(io::Error::from(io::ErrorKind::WriteZero)));
    }
    (&*socket).write_all(&body)?;
    Ok(())
}

/// Writes one message whose body is there already, by the one system call that every seccomp profile allows.
pub fn send_body(socket: &UnixStream, body: &[u8]) -> Result<(), WireError> {
    let head = head(body)?;
    Ok((&*socket).write_all(&[&head, body].concat())?)
}

fn head(body: &[u8]) -> Result<[u8; 4], WireError> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= BODY_LIMIT);
    Ok(length.ok_or(WireError::TooLong(body.len()))?.to_le_bytes())
}

/// A message with its descriptors; `None` when the other side is gone.
type Received<T> = Result<Option<(T, Vec<OwnedFd>)>, WireError>;

/// Reads one message.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Received<T> {
    let Some((body, fds)) = receive_body(socket)? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

/// Reads one message's body as it is.
pub fn receive_body(socket: &UnixStream) -> Received<Vec<u8>> {
    let mut head = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other.map_err(io::Error::from)?.bytes,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received == 0 {
        return Ok(None);
    }
    (&*socket).read_exact(&mut head[received..])?;
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if length > BODY_LIMIT {
        return Err(WireError::TooLong(length));
    }
    let mut body = vec![0; length];
    (&*socket).read_exact(&mut body)?;
    Ok(Some((body, fds)))
}

/// The descriptors to send with a request: the one that always comes, then the streams that are there.
pub fn borrow_all<'a>(first: &'a OwnedFd, rest: &'a [OwnedFd]) -> Vec<BorrowedFd<'a>> {
    std::iter::once(first).chain(rest).map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_message_carries_its_descriptors() {
        let (here, there) = UnixStream::pair().unwrap();
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        let writer = std::thread::spawn(move || {
            send(&here, &Answer::Started { pid: 7 }, &[null.as_fd(), null.as_fd()]).unwrap();
        });
        let (answer, fds) = receive::<Answer>(&there).unwrap().unwrap();
        assert!(matches!(answer, Answer::Started { pid: 7 }));
        assert_eq!(fds.len(), 2);
        for fd in &fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        writer.join().unwrap();
        assert!(receive::<Answer>(&there).unwrap().is_none(), "end of file is no message");
    }

    #[test]
    fn a_long_message_arrives_whole() {
        let (here, there) = UnixStream::pair().unwrap();
        let text = "x".repeat(3 << 20);
        let copy = text.clone();
        let writer = std::thread::spawn(move || send(&here, &copy, &[]).unwrap());
        assert_eq!(receive::<String>(&there).unwrap().unwrap().0, text);
        writer.join().unwrap();
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        (&here).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive::<String>(&there), Err(WireError::TooLong(_))));
    }
}
