//! Lets all processors of a machine run, or holds them.
//!
//! ```text
//!  held ◀── hold (kicks until all are in) ── running
//!    └───────────── release ─────────────────▶
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long to wait for processors before they are kicked again: a kick just before a processor enters the guest is lost.
const AGAIN: Duration = Duration::from_micros(500);

/// See the module. Shared by the machine and its processors' threads.
#[derive(Debug)]
pub(crate) struct Gate {
    open: AtomicBool,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// A gate that holds.
    pub(crate) fn new() -> Self {
        Self { open: AtomicBool::new(false), waiting: Mutex::new(0), changed: Condvar::new() }
    }

    /// A processor asks whether it may go on.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// A processor waits here until it may run. It has let go of everything.
    pub(crate) fn wait(&self) {
        let mut waiting = self.lock();
        *waiting += 1;
        self.changed.notify_all();
        while !self.is_open() {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting -= 1;
    }

    /// A processor has met the machine's end: nobody is to go on.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    /// Lets all run.
    pub(crate) fn release(&self) {
        let _waiting = self.lock();
        self.open.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Holds all `count` processors; `kick` makes each leave the guest. Answers when all wait.
    pub(crate) fn hold(&self, count: usize, kick: impl Fn()) {
        self.close();
        let mut waiting = self.lock();
        while *waiting < count {
            drop(waiting);
            kick();
            waiting = self.lock();
            if *waiting < count {
                waiting = self.changed.wait_timeout(waiting, AGAIN).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_runs_while_it_holds() {
        let gate = Arc::new(Gate::new());
        let rounds = Arc::new(AtomicU32::new(0));
        for _ in 0..3 {
            let (gate, rounds) = (Arc::clone(&gate), Arc::clone(&rounds));
            thread::spawn(move || {
                loop {
                    gate.wait();
                    while gate.is_open() {
                        rounds.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                }
            });
        }
        for _ in 0..20 {
            gate.hold(3, || {});
            let before = rounds.load(Ordering::SeqCst);
            thread::sleep(Duration::from_micros(200));
            assert_eq!(rounds.load(Ordering::SeqCst), before);
            gate.release();
            while rounds.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
    }
}
