//! Reaps every process that ends: PID 1 inherits all orphans of the guest.

use std::collections::{HashMap, VecDeque};
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
pub struct Reaper(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    watchers: HashMap<u32, oneshot::Sender<Exit>>,
    /// Ends that nobody had asked for yet, while processes are started beside the reaper's thread.
    unclaimed: Option<VecDeque<(u32, Exit)>>,
}

/// Ends that are kept; orphans of a container end, too.
const MOST_UNCLAIMED: usize = 1024;

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
    /// the same thread, so it cannot have reaped the process yet. On another thread [`Reaper::remember`] comes before the start.
    pub fn watch(&self, pid: u32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut watched = self.lock();
        let ended = watched.unclaimed.as_ref().and_then(|ends| ends.iter().rfind(|(ended, _)| *ended == pid));
        match ended.map(|(_, exit)| *exit) {
            // The receiver is here.
            Some(exit) => drop(sender.send(exit)),
            None => drop(watched.watchers.insert(pid, sender)),
        }
        receiver
    }

    /// Keeps, from now on, the ends of processes that nobody watches yet, and none of those before.
    pub fn remember(&self) {
        self.lock().unclaimed = Some(VecDeque::new());
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
            let Ok(pid) = u32::try_from(Pid::as_raw(Some(pid))) else { continue };
            let exit = Exit::now(status);
            let mut watched = self.lock();
            if let Some(watcher) = watched.watchers.remove(&pid) {
                // Whoever watched may have gone.
                let _ = watcher.send(exit);
            } else if let Some(unclaimed) = &mut watched.unclaimed {
                if unclaimed.len() == MOST_UNCLAIMED {
                    unclaimed.pop_front();
                }
                unclaimed.push_back((pid, exit));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
