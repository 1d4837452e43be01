//! A program of the caller's that takes a process's output: `binary:///PROGRAM?key=value`.
//!
//! It reads the output from descriptor 3 and the errors from 4, and closes 5 (or writes to it) once it does. Its arguments are
//! the URI's keys and values, one by one; its environment says whose output it is, and nothing else. It ends by itself at the
//! end of both.
//!
//! Source: containerd core/runtime/v2/README.md, "Logging"; runtime/v2/logging.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use percent_encoding::percent_decode_str;
use rustix::fs::{Access, access};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;

use crate::child::Child;
use crate::sys;

/// The first argument by which this program becomes a logging program ([`become_program`]).
pub const WORD: &str = "log";
/// How long it may take until it reads.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to end after the end of what it reads.
const END_PATIENCE: Duration = Duration::from_secs(12);

/// Whose output it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub container: String,
}

/// The program of a URI.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    /// Shape: the URI without its scheme.
    #[must_use]
    pub fn parse(rest: &str) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let arguments = pairs.flat_map(|pair| match pair.split_once('=') {
            Some((key, value)) if !value.is_empty() => vec![decode(key), decode(value)],
            Some((key, _)) => vec![decode(key)],
            None => vec![decode(pair)],
        });
        let arguments = arguments.collect();
        Self { path: percent_decode_str(path).decode_utf8_lossy().into_owned().into(), arguments }
    }
}

/// A running program. Dropping it closes what it reads, and waits for its end in the background.
#[derive(Debug)]
pub struct Logger {
    /// Until Delete: a program that ends early breaks no pipe of the process.
    _holds: [OwnedFd; 2],
    child: Option<Child>,
}

/// A program that takes output, and the ends to write.
pub struct Started {
    /// The program.
    pub logger: Logger,
    /// For the output.
    pub stdout: OwnedFd,
    /// For the errors.
    pub stderr: OwnedFd,
}

impl Logger {
    /// Starts the program, and waits until it says that it reads. When: within the runtime.
    ///
    /// # Errors
    /// It cannot be run, or is not ready in time.
    pub async fn start(program: &Program, owner: &Owner) -> io::Result<Started> {
        access(&program.path, Access::EXEC_OK)?;
        let (stdout_read, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_read, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ready, ready_write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        rustix::fs::fcntl_setfl(&ready_write, rustix::fs::OFlags::empty())?;
        let holds = [stdout_read.try_clone()?, stderr_read.try_clone()?];
        let child = Command::new("/proc/self/exe")
            .arg(WORD)
            .arg(&program.path)
            .args(&program.arguments)
            .env_clear()
            .env("CONTAINER_ID", &owner.container)
            .env("CONTAINER_NAMESPACE", &owner.namespace)
            .stdin(Stdio::from(stdout_read))
            .stdout(Stdio::from(stderr_read))
            .stderr(Stdio::from(ready_write))
            .spawn()?;
        let logger = Self { _holds: holds, child: Some(Child::adopt(child.id())?) };
        let mut ready = pipe::Receiver::from_owned_fd(ready)?;
        let said = tokio::time::timeout(READY_PATIENCE, ready.read(&mut [0])).await;
        said.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it does not say that it is ready"))??;
        Ok(Started { logger, stdout, stderr })
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        // Without a runtime this process ends, and init reaps it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(end(child));
        }
    }
}

async fn end(child: Child) {
    if tokio::time::timeout(END_PATIENCE, child.exit()).await.is_ok() {
        return;
    }
    tracing::warn!(pid = child.pid(), "a logging program does not end with what it reads; killing it");
    // It may have ended just now.
    let _ = child.signal(libc::SIGKILL);
    let _ = child.exit().await;
}

/// Puts the three descriptors where the program looks for them, and becomes it. Shape: its path, then its arguments.
///
/// When: in a process without threads, started by [`Logger::start`].
///
/// # Errors
/// It cannot be run; otherwise this does not return.
pub fn become_program(mut words: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let path = words.next().context("which program?")?;
    sys::place_at(io::stdin(), 3)?;
    sys::place_at(io::stdout(), 4)?;
    sys::place_at(io::stderr(), 5)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("no /dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    Err(Command::new(path).args(words).exec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_program_and_arguments() {
        let program = Program::parse("/usr/bin/my%20logger?-x=1&flag&name=a%2Fb+c&empty=");
        let expected = ["-x", "1", "flag", "name", "a/b c", "empty"].map(str::to_owned).to_vec();
        assert_eq!(program, Program { path: "/usr/bin/my logger".into(), arguments: expected });
        assert_eq!(Program::parse("/p"), Program { path: "/p".into(), arguments: Vec::new() });
    }
}
