//! The helper: this program started once more, with one thread, to do what a program with threads must not.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid, waitpid};

use crate::error::HelperError;
use crate::processes::Stat;
use crate::wire::{self, Answer, Request};
use crate::{serve, sys};

/// How a program knows that it is a helper: its own name.
const NAME: &str = "bulkhead-container-helper";
/// The argument of a helper that keeps nothing ready.
const STILL: &str = "still";

/// Serves as a helper if this process was started as one.
///
/// When: first statement of `main`, before any thread; returns if the process is no helper, and else never.
pub fn serve_if_helper() {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|name| name == NAME) {
        serve::run(words.next().is_some_and(|argument| argument == STILL))
    }
}

/// How long a helper's start may take to be worth waiting for.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// A process of this program that waits for one request.
///
/// When: spawn it early, since its start is then paid before it matters. One helper does one thing. A helper that is dropped
/// unused ends. The program's `main` must begin with [`serve_if_helper`].
#[derive(Debug)]
pub struct Helper {
    socket: UnixStream,
    /// Its process id, and the id of its process group: libcontainer's intermediate process is in that group and is, like
    /// the container's first process, a child of ours.
    pid: Pid,
}

impl Helper {
    /// Starts a helper.
    ///
    /// # Errors
    /// [`HelperError::Spawn`] when the system has no process or no file descriptor left.
    pub fn spawn() -> Result<Self, HelperError> {
        Self::start(None)
    }

    /// Starts a helper that does nothing but wait, for who needs a process in a cgroup. (Another one keeps the kernel ready by moving
    /// itself to where it has been since its start.)
    ///
    /// # Errors
    /// As [`Helper::spawn`].
    pub fn spawn_still() -> Result<Self, HelperError> {
        Self::start(Some(STILL))
    }

    fn start(argument: Option<&str>) -> Result<Self, HelperError> {
        let (ours, theirs) = UnixStream::pair().map_err(HelperError::Spawn)?;
        // The path is resolved after the fork and before descriptors are closed, so the number is still that of `program`.
        let program = own_program();
        let path =
            program.as_ref().map_or("/proc/self/exe".to_owned(), |fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let child = Command::new(path)
            .arg0(NAME)
            .args(argument)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(HelperError::Spawn)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| HelperError::Spawn(io::Error::from(io::ErrorKind::InvalidData)))?;
        Ok(Self { socket: ours, pid })
    }

    /// Waits until the helper has started and waits itself, so that no part of its start is left to the request. Not for
    /// long: a helper that is slower serves all the same.
    pub fn await_ready(&self) {
        let deadline = Instant::now() + START_PATIENCE;
        let pid = self.pid();
        // It sleeps nowhere before.
        while Stat::of(pid).is_ok_and(|stat| stat.state != 'S' && stat.is_alive()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Hands the request over, waits for the answer and for the helper's end.
    pub(crate) fn ask(self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>), HelperError> {
        wire::send(&self.socket, request, fds).map_err(HelperError::Talk)?;
        let answer = wire::receive(&self.socket).map_err(HelperError::Talk)?.ok_or(HelperError::Died)?;
        if !matches!(answer.0, Answer::Started { .. }) {
            // What a failed set-up left behind must not wait for anything.
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        Ok(answer)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // End of file on its socket ends the helper.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        // Somebody else may reap all our children (process 1 does): then there is nobody to wait for.
        while matches!(waitpid(Some(self.pid), WaitOptions::empty()), Err(Errno::INTR)) {}
        // libcontainer's intermediate process is ending, too. Not forever: a daemon that a hook left behind may have become
        // a child of ours, and is none of our business.
        for _ in 0..100 {
            match waitpgid(self.pid, WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => break,
            }
        }
    }
}

/// This program's file behind a read-only mount of its own, so that nobody can write to the program through the
/// `/proc/<pid>/exe` of a process that enters a container (CVE-2019-5736). `None` where the kernel cannot do that.
fn own_program() -> Option<OwnedFd> {
    let exe = File::open("/proc/self/exe").ok()?;
    let path = format!("/proc/self/fd/{}", exe.as_raw_fd());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, path, flags)
        .map_err(io::Error::from)
        .and_then(|mount| sys::set_mount_read_only(rustix::fd::AsFd::as_fd(&mount)).map(|()| mount));
    match mount {
        Ok(mount) => Some(mount),
        Err(error) => {
            tracing::debug!(%error, "no read-only mount of the own program");
            None
        }
    }
}
