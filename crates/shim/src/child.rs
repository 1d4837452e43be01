//! Waiting for one of our children by its pidfd, so that nobody else's child is ever reaped here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A child of this process that is waited for here and nowhere else.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Child {
    /// Takes a child over. When: within the runtime, before anybody has reaped it.
    ///
    /// # Errors
    /// There is no such process.
    pub fn adopt(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no process id")))?;
        let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, pidfd: sys::watch(pidfd, Interest::READABLE)? })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` after it has been reaped, `EINVAL` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::pidfd_send_signal(&self.pidfd, signal)
    }

    /// Waits for its end and reaps it. Answers 0 to 255, 128 + N for signal N. When: once.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub async fn exit(&self) -> io::Result<u32> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            let status = match waitid(WaitId::PidFd(rustix::fd::AsFd::as_fd(&self.pidfd)), WaitIdOptions::EXITED) {
                Ok(Some(status)) => status,
                Ok(None) | Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => return Err(io::Error::other("a child ended neither by exit nor by a signal")),
            };
            return u32::try_from(code).map_err(io::Error::other);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::zombie_processes, reason = "the Child of this module is what waits")]
    use super::*;

    async fn outcome(script: &str) -> u32 {
        let child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        Child::adopt(child.id()).unwrap().exit().await.unwrap()
    }

    #[tokio::test]
    async fn exits_and_signals_become_a_shells_numbers() {
        assert_eq!(outcome("exit 0").await, 0);
        assert_eq!(outcome("exit 200").await, 200);
        assert_eq!(outcome("kill -9 $$").await, 137);
        assert_eq!(outcome("kill -34 $$").await, 162);
    }

    #[tokio::test]
    async fn a_signal_to_a_reaped_child_says_so() {
        let spawned = std::process::Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let child = Child::adopt(spawned.id()).unwrap();
        child.signal(15).unwrap();
        assert_eq!(child.exit().await.unwrap(), 143);
        assert_eq!(child.signal(15).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(Child::adopt(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
