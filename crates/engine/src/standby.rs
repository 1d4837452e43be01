//! What stands by for the next hyperv container, a utility VM or a process to fork one in: when it is made, who gets it, when it goes.
//!
//! ```text
//!          a hyperv container has started, QUIET without another          its shim serves
//!   Empty ---------------------------------------------------> Preparing ----------------> Ready
//!     ^  ^----------- failed, or longer than PATIENCE --------------/                        |
//!     \------------------ taken by a container, dead, or UNUSED without a start -------------/
//!   any --- the engine stops ---> Closed
//! ```
//!
//! Nothing is kept before the first hyperv container of the engine's run has started: then its template exists, and a
//! host without such containers pays nothing. How a VM is made is the preparer's knowledge: this module knows no engine.

mod shim;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

pub use shim::StandbyShim;

/// How long no hyperv container may have been starting before a VM is prepared, so that a burst of starts is not slowed
/// by preparations that take its processors.
pub const QUIET: Duration = Duration::from_millis(500);
/// How long it is kept without any start of a hyperv container.
pub const UNUSED: Duration = Duration::from_secs(5 * 60);
/// Bound of one preparation, which takes about two seconds under software emulation.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What stands by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A utility VM that has rehearsed: some 60 MiB.
    #[default]
    Vm,
    /// A hypervisor's process that waits for a fork, where that is quick by itself: 1.5 to 3 MiB with its shim.
    Process,
}

/// What can stand by.
pub trait Vm {
    /// Its shim has not ended.
    fn is_alive(&self) -> bool;
}

/// Makes what stands by, and takes it down again.
pub trait Prepare {
    /// What it makes.
    type Vm: Vm;
    /// Begins to make one.
    async fn begin(&self, kind: Kind) -> Result<Self::Vm, String>;
    /// Waits until it is ready, without a bound.
    async fn ready(&self, vm: &Self::Vm) -> Result<(), String>;
    /// Takes it down; what is left of it goes too. `fault` is why, unless that is in order.
    async fn discard(&self, vm: Self::Vm, fault: Option<String>);
}

enum Slot<V> {
    Empty,
    Preparing,
    Ready(V),
    Closed,
}

/// What is known of hyperv containers' starts.
#[derive(Debug, Clone, Copy, Default)]
struct Starts {
    under_way: u32,
    succeeded: u64,
    /// What the last of these pays for.
    wanted: Kind,
}

/// The place for the one VM that stands by.
pub struct Standby<V = StandbyShim> {
    slot: Mutex<Slot<V>>,
    starts: watch::Sender<Starts>,
}

/// A start of a hyperv container; dropped, it has ended.
pub struct Start<'a> {
    starts: &'a watch::Sender<Starts>,
}

impl Start<'_> {
    /// The container runs: others may follow, for which this is to stand by.
    pub fn succeeded(self, wanted: Kind) {
        self.starts.send_modify(|starts| {
            starts.succeeded += 1;
            starts.wanted = wanted;
        });
    }
}

impl Drop for Start<'_> {
    fn drop(&mut self) {
        self.starts.send_modify(|starts| starts.under_way -= 1);
    }
}

impl<V: Vm> Standby<V> {
    /// An empty place; one that stays so if none is to be kept.
    #[must_use]
    pub fn new(kept: bool) -> Self {
        let slot = if kept { Slot::Empty } else { Slot::Closed };
        Self { slot: Mutex::new(slot), starts: watch::Sender::default() }
    }

    /// Notes that a hyperv container is being started.
    pub fn note_start(&self) -> Start<'_> {
        self.starts.send_modify(|starts| starts.under_way += 1);
        Start { starts: &self.starts }
    }

    /// Gives the VM away, to one caller only, if it is ready and fits. Its shim may have died meanwhile.
    pub fn take(&self, fits: impl FnOnce(&V) -> bool) -> Option<V> {
        let mut slot = self.slot();
        let left = if matches!(&*slot, Slot::Ready(vm) if fits(vm)) { Slot::Empty } else { return None };
        match std::mem::replace(&mut *slot, left) {
            Slot::Ready(vm) => Some(vm),
            Slot::Empty | Slot::Preparing | Slot::Closed => None,
        }
    }

    /// Takes back what was taken and not used; whoever finds the place filled or closed keeps it.
    ///
    /// # Errors
    /// The VM, for which there is no place.
    pub fn put_back(&self, vm: V) -> Result<(), V> {
        let mut slot = self.slot();
        match &*slot {
            Slot::Empty => {
                *slot = Slot::Ready(vm);
                Ok(())
            }
            Slot::Preparing | Slot::Ready(_) | Slot::Closed => Err(vm),
        }
    }

    /// `ready`, `preparing`, `none` or `off`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match &*self.slot() {
            Slot::Ready(vm) if vm.is_alive() => "ready",
            Slot::Ready(_) | Slot::Empty => "none",
            Slot::Preparing => "preparing",
            Slot::Closed => "off",
        }
    }

    /// Keeps the place as the drawing above says, until the engine stops. When: one caller.
    pub async fn keep<P: Prepare<Vm = V>>(&self, preparer: &P, stopping: &CancellationToken) {
        if matches!(&*self.slot(), Slot::Closed) {
            return;
        }
        let mut starts = self.starts.subscribe();
        // Starts before this count too.
        starts.mark_changed();
        let mut served = 0;
        loop {
            match stopping.run_until_cancelled(timeout(UNUSED, starts.changed())).await {
                // The sender lives as long as this borrow of it: only the stop ends the loop.
                None | Some(Ok(Err(_))) => break,
                Some(Ok(Ok(()))) => {}
                Some(Err(_)) => {
                    self.clear(preparer, None).await;
                    continue;
                }
            }
            if stopping.run_until_cancelled(quiet(&mut starts)).await.is_none() {
                break;
            }
            let Starts { succeeded, wanted, .. } = *starts.borrow();
            if succeeded > served {
                served = succeeded;
                self.fill(preparer, wanted, stopping).await;
            }
        }
        self.close(preparer).await;
    }

    async fn fill<P: Prepare<Vm = V>>(&self, preparer: &P, kind: Kind, stopping: &CancellationToken) {
        if matches!(&*self.slot(), Slot::Ready(vm) if vm.is_alive()) {
            return;
        }
        self.clear(preparer, Some("it ended by itself")).await;
        *self.slot() = Slot::Preparing;
        let made = prepare(preparer, kind, stopping).await;
        *self.slot() = made.map_or(Slot::Empty, Slot::Ready);
    }

    /// Empties the place; a VM in it goes.
    async fn clear<P: Prepare<Vm = V>>(&self, preparer: &P, fault: Option<&str>) {
        if let Some(vm) = self.take(|_| true) {
            preparer.discard(vm, fault.map(ToOwned::to_owned)).await;
        }
    }

    async fn close<P: Prepare<Vm = V>>(&self, preparer: &P) {
        let last = std::mem::replace(&mut *self.slot(), Slot::Closed);
        if let Slot::Ready(vm) = last {
            preparer.discard(vm, None).await;
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot<V>> {
        // Every change is a single step.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers when no start is under way and none has begun or ended for [`QUIET`].
async fn quiet(starts: &mut watch::Receiver<Starts>) {
    loop {
        let idle = starts.borrow_and_update().under_way == 0;
        if idle && timeout(QUIET, starts.changed()).await.is_err() {
            return;
        }
        if !idle && starts.changed().await.is_err() {
            return;
        }
    }
}

async fn prepare<P: Prepare>(preparer: &P, kind: Kind, stopping: &CancellationToken) -> Option<P::Vm> {
    let deadline = Instant::now() + PATIENCE;
    let vm = match preparer.begin(kind).await {
        Ok(vm) => vm,
        Err(error) => {
            tracing::warn!(error, "cannot prepare a utility VM to stand by");
            return None;
        }
    };
    let late = || Err(format!("it is not ready after {} s", PATIENCE.as_secs()));
    match stopping.run_until_cancelled(timeout_at(deadline, preparer.ready(&vm))).await {
        Some(ready) => match ready.unwrap_or_else(|_| late()) {
            Ok(()) => return Some(vm),
            Err(fault) => preparer.discard(vm, Some(fault)).await,
        },
        None => preparer.discard(vm, None).await,
    }
    None
}

#[cfg(test)]
mod tests;
