//! The builds under way that a client can cancel.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Builds by the id that their client gave.
#[derive(Default)]
pub struct Builds(Mutex<HashMap<String, CancellationToken>>);

impl Builds {
    fn all(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A build begins.
    pub fn enter(&self, id: &str, cancelled: &CancellationToken) {
        self.all().insert(id.to_owned(), cancelled.clone());
    }

    /// It is over.
    pub fn leave(&self, id: &str) {
        self.all().remove(id);
    }

    /// Ends a build, if it is under way.
    pub fn cancel(&self, id: &str) {
        if let Some(build) = self.all().get(id) {
            build.cancel();
        }
    }
}
