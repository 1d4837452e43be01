//! The builds under way that a client can cancel, and what builds leave.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use tokio_util::sync::CancellationToken;

/// Name of the folder below the data root in which builds keep their files. Only repositories have names there, until they
/// were read.
pub const FOLDER: &str = "builds";

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

/// Removes what builds have left that an engine's sudden end broke off. When: before any begins.
///
/// # Errors
/// The folder cannot be removed.
pub fn clear(data_root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(data_root.join(FOLDER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
