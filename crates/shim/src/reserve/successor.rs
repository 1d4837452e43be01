//! What a container's shim owes the next container: once it has started, something stands by for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Order, QUIET, note_start};
use crate::child::Child;
use crate::foreign::StandbyKind;

/// ```text
///   Nothing ─ order ─▶ Ordered ─ started ─▶ Owed ─ QUIET, or the container is deleted ─▶ Nothing
/// ```
#[derive(Default)]
enum State {
    #[default]
    Nothing,
    /// The container has not started: maybe none can.
    Ordered(Order, StandbyKind),
    Owed(Order, StandbyKind),
}

/// One shim's.
#[derive(Default)]
pub struct Successor(Mutex<State>);

impl Successor {
    /// The container is made; the next one is to have the same.
    pub fn order(&self, order: Order, kind: StandbyKind) {
        *self.state() = State::Ordered(order, kind);
    }

    /// The container runs. When: within the runtime; not for its further processes.
    pub fn started(self: &Arc<Self>) {
        {
            let mut state = self.state();
            match std::mem::take(&mut *state) {
                State::Ordered(order, kind) => *state = State::Owed(order, kind),
                other => {
                    *state = other;
                    return;
                }
            }
        }
        if let Err(error) = note_start() {
            tracing::warn!(%error, "who prepares what is to stand by does not know of this start");
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            // A short-lived container's end comes first, and is not to wait for it.
            tokio::time::sleep(QUIET).await;
            this.hand_out().await;
        });
    }

    /// Has the next one prepared, if that is owed; nothing waits for it. When: the last time before the shim ends.
    pub async fn hand_out(&self) {
        let State::Owed(order, kind) = std::mem::take(&mut *self.state()) else { return };
        let child = tokio::task::spawn_blocking(move || order.hand_out(kind)).await;
        let child = match child.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(child) => child,
            Err(error) => return tracing::warn!(%error, "nothing will stand by"),
        };
        let Some(child) = child else { return };
        match Child::adopt(child.id()) {
            Ok(child) => {
                tokio::spawn(async move {
                    let ended = child.exit().await;
                    tracing::debug!(pid = child.pid(), ?ended, "a process that stood by has ended");
                });
            }
            Err(error) => tracing::warn!(%error, "cannot wait for the process that stands by"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
