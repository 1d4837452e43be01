//! A hypervisor's process: a handle that cannot come to mean another one, its end, and what it printed last.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::console_text::printable;
use crate::hypervisor::{ExitReason, VmExit};
use crate::sys;

/// How much of a hypervisor's own messages is shown in an error.
const LAST_WORDS_BYTES: usize = 2000;

/// The process.
#[derive(Debug)]
pub(crate) struct Process {
    id: u32,
    handle: OwnedFd,
    killed: AtomicBool,
}

impl Process {
    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Ends it, which is then our doing.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.signal();
    }

    /// Ends it after its guest's own end.
    pub(crate) fn signal(&self) {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            // It has ended by itself.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = self.id, %error, "cannot kill the hypervisor"),
        }
    }

    /// True when we ended it.
    pub(crate) fn was_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }
}

/// A child that was just spawned, watched for its end.
#[derive(Debug)]
pub(crate) struct Watched {
    child: Child,
    ended: AsyncFd<OwnedFd>,
    process: Arc<Process>,
    log: Arc<Log>,
}

impl Watched {
    /// Takes charge of a child; ends it if that fails.
    pub(crate) fn adopt(mut child: Child, log: Arc<Log>) -> io::Result<Self> {
        let prepare = |child: &Child| -> io::Result<(Process, AsyncFd<OwnedFd>)> {
            let pid = Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("pid 0"))?;
            let handle = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
            let ended = sys::watch(handle.try_clone()?)?;
            Ok((Process { id: child.id(), handle, killed: AtomicBool::new(false) }, ended))
        };
        match prepare(&child) {
            Ok((process, ended)) => Ok(Self { child, ended, process: Arc::new(process), log }),
            Err(error) => {
                let ended = child.kill().and_then(|()| child.wait());
                tracing::debug!(?ended, "ended the hypervisor");
                Err(error)
            }
        }
    }

    /// The process.
    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Answers when it has ended. It is not reaped yet.
    pub(crate) async fn ended(&self) {
        if let Err(error) = self.ended.readable().await {
            tracing::error!(pid = self.process.id, %error, "cannot watch the hypervisor");
        }
    }

    /// Waits for the end and says what it was.
    pub(crate) async fn reap(&mut self) -> VmExit {
        self.ended().await;
        // The process has ended, so this does not block. Somebody else may have reaped it: then its status is unknown.
        let status = self.child.wait().ok();
        if self.process.was_killed() {
            return VmExit { reason: ExitReason::Killed, detail: String::new() };
        }
        let said = self.log.last_words();
        let detail = match status {
            Some(status) => format!("{status}: {said}"),
            None => said,
        };
        VmExit { reason: ExitReason::Exited(status.map(ExitStatusExt::into_raw)), detail }
    }
}

/// A process that runs a machine, and what becomes of it. Dropping it ends the process; a task reaps it.
#[derive(Debug)]
pub(crate) struct Running {
    process: Arc<Process>,
    ended: watch::Receiver<Option<VmExit>>,
}

impl Running {
    /// `watcher` waits for the process's end, whatever it is, and says what it was.
    pub(crate) fn watched_by(process: Arc<Process>, watcher: impl Future<Output = VmExit> + Send + 'static) -> Self {
        let (sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let exit = watcher.await;
            sender.send_replace(Some(exit));
        });
        Self { process, ended }
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it, which is then our doing.
    pub(crate) fn kill(&self) {
        self.process.kill();
    }

    /// Its end was observed.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> VmExit {
        let mut ended = self.ended.clone();
        let exit = match ended.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone(),
            // The runtime that watched it is shutting down.
            Err(_) => None,
        };
        exit.unwrap_or(VmExit { reason: ExitReason::Exited(None), detail: "its end was not observed".into() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// The file with a hypervisor's own messages. It is kept open, since the folder it is in gets another name, or goes, when the machine is
/// another container's.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    /// Makes it. Shape: the second is what the hypervisor writes to.
    pub(crate) fn make(run_dir: &Path, name: &str) -> io::Result<(Arc<Self>, File)> {
        fs::create_dir_all(run_dir)?;
        let path = run_dir.join(name);
        let messages = File::create(&path)?;
        Ok((Arc::new(Self(File::open(path)?)), messages))
    }

    /// What the hypervisor printed last, in one line.
    pub(crate) fn last_words(&self) -> String {
        let mut end = vec![0; LAST_WORDS_BYTES];
        let read = self.0.metadata().and_then(|facts| {
            let begin = facts.len().saturating_sub(LAST_WORDS_BYTES as u64);
            self.0.read_at(&mut end, begin)
        });
        // Without them the end is told all the same.
        end.truncate(read.unwrap_or(0));
        let text = printable(&String::from_utf8_lossy(&end));
        text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_last_words_are_read_wherever_the_file_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("a/vm");
        let (log, mut hypervisors) = Log::make(&run_dir, "vmm.log").unwrap();
        assert_eq!(log.last_words(), "");
        hypervisors.write_all(b"first\n\nsecond\n").unwrap();
        assert_eq!(log.last_words(), "first; second");
        fs::rename(&run_dir, folder.path().join("b")).unwrap();
        hypervisors.write_all("x".repeat(LAST_WORDS_BYTES).as_bytes()).unwrap();
        fs::remove_dir_all(folder.path().join("b")).unwrap();
        hypervisors.write_all(b"\nlast\n").unwrap();
        let said = log.last_words();
        assert!(said.ends_with("x; last") && !said.contains("second") && said.len() <= LAST_WORDS_BYTES, "{said}");
    }
}
