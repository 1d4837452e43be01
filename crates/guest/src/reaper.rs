//! Reaps every process that ends: PID 1 inherits all orphans of the guest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::identity;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; killed by signal N is 128 + N.
    pub code: u32,
    /// The guest's clock when it was reaped, nanoseconds since the epoch.
    pub at_ns: i64,
}

impl Exit {
    fn now(status: WaitStatus) -> Self {
        let by_signal = status.terminating_signal().map(|signal| 128 + signal);
        let code = status.exit_status().or(by_signal).and_then(|code| u32::try_from(code).ok());
        // The kernel reports ends only, which are exits or signals.
        Self { code: code.unwrap_or(255), at_ns: identity::wall_clock_ns() }
    }
}

/// Who waits for which process.
#[derive(Debug, Clone, Default)]
pub struct Reaper(Arc<Mutex<HashMap<u32, oneshot::Sender<Exit>>>>);

impl Reaper {
    /// Begins to reap. Call it before the first process that is to be watched exists.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub fn spawn() -> std::io::Result<Self> {
        let reaper = Self::default();
        let ended = signal(SignalKind::child())?;
        tokio::spawn(reaper.clone().run(ended));
        Ok(reaper)
    }

    /// The end of a process that was just started. No await may lie between its start and this call: the reaper runs on
    /// the same thread, so it cannot have reaped the process yet.
    pub fn watch(&self, pid: u32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(pid, sender);
        receiver
    }

    async fn run(self, mut ended: Signal) {
        loop {
            self.reap();
            // Several ends may be one signal, so each signal means: all there are.
            ended.recv().await;
        }
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let watcher = u32::try_from(Pid::as_raw(Some(pid))).ok().and_then(|pid| self.lock().remove(&pid));
            if let Some(watcher) = watcher {
                // Whoever watched may have gone.
                let _ = watcher.send(Exit::now(status));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Exit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
