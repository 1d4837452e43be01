//! A worker as its parent sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use proto::Digest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::feed::enlarge;
use super::serve::{NAME, program_serves};
use super::wire::{self, Answer, Job, MAX_ANSWER, Order};
use crate::limits::Limits;
use crate::worker_fault::WorkerFault;

/// How long a worker may take or give nothing while it is waited for. A slow disk is slow, but not this slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running worker. Drop ends it.
pub(super) struct Worker {
    child: Child,
    control: OwnedFd,
    feed: Option<Feed>,
    ended: bool,
}

impl Worker {
    /// Starts one. Shape: `output` is where its result goes.
    pub fn start(job: Job, limits: &Limits, output: BorrowedFd<'_>) -> Result<Self, WorkerFault> {
        if !program_serves() {
            return Err(WorkerFault::NotServed);
        }
        let start = |error: Errno| WorkerFault::Start(error.into());
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(start)?;
        let (input, feed) = pipe_with(PipeFlags::CLOEXEC).map_err(start)?;
        enlarge(&feed);
        fcntl_setfl(&feed, OFlags::NONBLOCK).map_err(start)?;
        let child = Command::new("/proc/self/exe")
            .arg0(NAME)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(WorkerFault::Start)?;
        let worker = Self { child, control, feed: Some(Feed(feed)), ended: false };
        let order = Order { job, limits: *limits, parent: std::process::id() };
        wire::send_order(&worker.control, &order, &[input.as_fd(), output]).map_err(WorkerFault::Start)?;
        Ok(worker)
    }

    /// The end of the pipe that it reads; closed when dropped. When: once.
    pub fn take_feed(&mut self) -> Feed {
        self.feed.take().expect("a worker is fed once")
    }

    /// Tells a converter what the stream's digest is. One that is gone will be noticed when it should answer.
    pub fn give_digest(&self, digest: &Digest) -> Result<(), WorkerFault> {
        match send(&self.control, digest.hex().as_bytes(), SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(WorkerFault::Start(error.into())),
        }
    }

    /// Waits for the answer and the end.
    pub fn answer(&mut self) -> Result<Answer, WorkerFault> {
        wait_for(self.control.as_fd(), PollFlags::IN)?;
        let mut bytes = vec![0; MAX_ANSWER];
        let received = loop {
            match recv(&self.control, &mut bytes[..], RecvFlags::empty()) {
                // The second: it closed its end with our digest unread. That is said first, then its own last words come.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Ok((_, received)) => break received,
                Err(_) => break 0,
            }
        };
        if received == 0 {
            return Err(self.ending());
        }
        serde_json::from_slice(&bytes[..received.min(MAX_ANSWER)])
            .map_err(|_| WorkerFault::Answer("it cannot be understood"))
    }

    /// Ends it, if it has not ended.
    pub fn kill(&mut self) {
        if !self.ended {
            // One that has ended by itself cannot be killed.
            let _ = self.child.kill();
            self.reap();
        }
    }

    /// What became of a worker that closed its end without a word.
    fn ending(&mut self) -> WorkerFault {
        match self.reap() {
            Some(status) => fault_of(status),
            None => WorkerFault::Died("somebody else has waited for it".to_owned()),
        }
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        self.ended = true;
        self.child.wait().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn fault_of(status: ExitStatus) -> WorkerFault {
    match status.signal() {
        // Rust aborts when memory runs out; a panic unwinds and ends with a code.
        Some(libc::SIGABRT) => WorkerFault::Memory,
        Some(libc::SIGXCPU) => WorkerFault::Time,
        Some(libc::SIGXFSZ) => WorkerFault::FileSize,
        Some(libc::SIGSYS) => WorkerFault::Forbidden,
        _ => WorkerFault::Died(status.to_string()),
    }
}

/// The writing end of the pipe that a worker reads.
pub(super) struct Feed(OwnedFd);

/// Bytes that a worker did not take.
pub(super) enum FeedError {
    /// It has closed its end.
    Closed,
    /// It takes nothing.
    Fault(WorkerFault),
}

impl Feed {
    pub fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), FeedError> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.0, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for(self.0.as_fd(), PollFlags::OUT).map_err(FeedError::Fault)?,
                Err(Errno::PIPE) => return Err(FeedError::Closed),
                Err(error) => return Err(FeedError::Fault(WorkerFault::Died(io::Error::from(error).to_string()))),
            }
        }
        Ok(())
    }
}

fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) -> Result<(), WorkerFault> {
    let patience = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&patience)) {
            Ok(0) => return Err(WorkerFault::Stalled { seconds: PATIENCE.as_secs() }),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(WorkerFault::Died(io::Error::from(error).to_string())),
        }
    }
}
