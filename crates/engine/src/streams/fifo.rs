//! The fifos of a process: made by the engine, opened by engine and shim, outliving either.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::Outputs;
use crate::output::Source;
use crate::sys;
use crate::task::StdioPaths;

/// How much a fifo holds: more than the kernel's 64 KiB saves wake-ups, and costs only what is in it.
const CAPACITY: usize = 256 * 1024;

/// Which fifos a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FifoSet {
    /// Input is wanted.
    pub stdin: bool,
    /// Output is wanted.
    pub stdout: bool,
    /// Error output is wanted; never with a terminal.
    pub stderr: bool,
    /// The process has a terminal.
    pub terminal: bool,
}

impl FifoSet {
    /// A container's first process: its output is always taken.
    #[must_use]
    pub fn for_container(stdin: bool, terminal: bool) -> Self {
        Self { stdin, stdout: true, stderr: !terminal, terminal }
    }

    /// The paths in `folder`, each name behind `prefix`.
    #[must_use]
    pub fn paths(self, folder: &Path, prefix: &str) -> StdioPaths {
        let path = |wanted: bool, name: &str| wanted.then(|| folder.join(format!("{prefix}{name}")));
        StdioPaths {
            stdin: path(self.stdin, "stdin"),
            stdout: path(self.stdout, "stdout"),
            stderr: path(self.stderr, "stderr"),
            terminal: self.terminal,
        }
    }
}

fn each(paths: &StdioPaths) -> impl Iterator<Item = &PathBuf> {
    [&paths.stdin, &paths.stdout, &paths.stderr].into_iter().flatten()
}

/// Makes the fifos, for root alone.
///
/// # Errors
/// What mkfifo says.
pub fn make(paths: &StdioPaths) -> io::Result<()> {
    each(paths).try_for_each(|path| Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?))
}

/// Removes the fifos; one that is not there is none to remove.
pub fn remove(paths: &StdioPaths) {
    for path in each(paths) {
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a fifo");
        }
    }
}

/// The engine's ends of a process' fifos.
pub struct Ends {
    /// Writes what the process reads.
    pub stdin: Option<pipe::Sender>,
    /// Read what the process writes.
    pub outputs: Outputs,
}

/// Opens the engine's ends without waiting for the other side. When: before the shim opens its ends, or any time later.
///
/// # Errors
/// What open says.
pub fn open(paths: &StdioPaths) -> io::Result<Ends> {
    let receiver = |path: &Option<PathBuf>| path.as_ref().map(open_receiver).transpose();
    // Opened for reading too, so that it opens before anybody reads.
    let sender = |path: &PathBuf| pipe::OpenOptions::new().read_write(true).open_sender(path);
    let stdin = paths.stdin.as_ref().map(sender).transpose()?;
    let outputs = [(Source::Stdout, receiver(&paths.stdout)?), (Source::Stderr, receiver(&paths.stderr)?)];
    Ok(Ends { stdin, outputs: Outputs::new(outputs) })
}

fn open_receiver(path: &PathBuf) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no fifo"));
    }
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&fd, CAPACITY) {
        tracing::debug!(%error, "a fifo keeps its small buffer");
    }
    sys::awaitable(fd, tokio::io::Interest::READABLE)
}
