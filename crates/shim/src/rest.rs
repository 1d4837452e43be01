//! A shim that nobody asks for anything keeps little: most of its life it only waits.

use std::time::Duration;

use tokio::sync::Notify;

use crate::sys;

/// Longer than threads without work are kept, whose stacks go with them.
const PAUSE: Duration = Duration::from_millis(1500);

/// Whether a shim is asked for something.
#[derive(Default)]
pub struct Rest(Notify);

impl Rest {
    /// A request has come.
    pub fn disturb(&self) {
        self.0.notify_one();
    }

    /// Gives back what the last requests took, after each time that there were some and then none for a while. Shape: never ends.
    pub async fn keep(&self) {
        loop {
            while tokio::time::timeout(PAUSE, self.0.notified()).await.is_ok() {}
            sys::trim_heap();
            if let Err(error) = sys::forget_program() {
                tracing::warn!(%error, "the program's pages stay mapped");
            }
            self.0.notified().await;
        }
    }
}
