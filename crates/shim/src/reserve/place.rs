//! Where a utility VM stands by: a folder with a socket, in memory.
//!
//! The socket says how far it is by its name, and that its process lives by answering. So nothing that a killed process has left is
//! taken for one that lives; whoever comes next clears it away.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One folder for each.
const FOLDER: &str = "/run/bulkhead/standby";
/// Written to by every start of a container of a foreign containerd's in a utility VM.
const STARTED: &str = "started";
/// The socket of one that is being prepared, and of one that is ready. Short, since a socket's path has 107 bytes.
const PREPARING: &str = "p";
const READY: &str = "s";

/// How long no such container may have been starting before a VM is prepared, which would take the start's processors.
pub const QUIET: Duration = Duration::from_millis(500);

/// Notes that a hyperv container of a foreign containerd is being started, or was.
///
/// # Errors
/// It cannot be noted.
pub fn note_start() -> io::Result<()> {
    note_start_in(Path::new(FOLDER))
}

fn note_start_in(top: &Path) -> io::Result<()> {
    make(top)?;
    File::create(top.join(STARTED))?.set_modified(SystemTime::now())
}

/// How long it is until it has been quiet for [`QUIET`]; `None` when it has.
#[must_use]
pub fn quiet_in() -> Option<Duration> {
    quiet_in_folder(Path::new(FOLDER))
}

fn quiet_in_folder(top: &Path) -> Option<Duration> {
    let started = fs::metadata(top.join(STARTED)).and_then(|facts| facts.modified()).ok()?;
    // A clock that was set back has it quiet at once.
    let since = SystemTime::now().duration_since(started).ok()?;
    QUIET.checked_sub(since).filter(|left| !left.is_zero())
}

/// One VM's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    top: PathBuf,
    folder: PathBuf,
}

impl Place {
    /// The place of a name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::below(Path::new(FOLDER), name)
    }

    fn below(top: &Path, name: &str) -> Self {
        Self { top: top.to_owned(), folder: top.join(name) }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Asks whoever is ready there.
    ///
    /// # Errors
    /// Nobody is.
    pub fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.folder.join(READY))
    }

    /// Somebody stands by there, or is about to.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        [READY, PREPARING].iter().any(|name| UnixStream::connect(self.folder.join(name)).is_ok())
    }

    /// Takes it for as long as the listener is there. Answers `None` when somebody has it. Shape: the folder is empty but for the
    /// socket.
    ///
    /// # Errors
    /// What a killed process has left cannot be removed; the folder cannot be made.
    pub fn take(&self) -> io::Result<Option<UnixListener>> {
        make(&self.top)?;
        let _lock = self.lock()?;
        if self.is_taken() {
            return Ok(None);
        }
        remove(&self.folder)?;
        make(&self.folder)?;
        UnixListener::bind(self.folder.join(PREPARING)).map(Some)
    }

    /// What was prepared is ready. When: it is taken.
    ///
    /// # Errors
    /// What rename says.
    pub fn open(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        fs::rename(self.folder.join(PREPARING), self.folder.join(READY))
    }

    /// Nobody finds it any more. When: before the listener goes.
    ///
    /// # Errors
    /// What is in it cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        remove(&self.folder)
    }

    /// As [`Place::clear`], but the folder's other files stay, such as a log of what went wrong.
    ///
    /// # Errors
    /// The socket cannot be removed.
    pub fn close(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        for name in [READY, PREPARING] {
            match fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Held until the file is closed: two do not both take a place.
    fn lock(&self) -> io::Result<File> {
        let folder = File::open(&self.top)?;
        folder.lock()?;
        Ok(folder)
    }
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_processs_and_what_a_killed_one_left_is_nobodys() {
        let top = tempfile::tempdir().unwrap();
        let place = Place::below(top.path(), "key");
        let first = place.take().unwrap().unwrap();
        assert!(place.is_taken() && place.take().unwrap().is_none() && place.connect().is_err());
        place.open().unwrap();
        assert!(place.connect().is_ok() && place.take().unwrap().is_none());
        fs::write(place.folder().join("file"), "of the first").unwrap();
        // As when its process is killed.
        drop(first);
        assert!(place.connect().is_err() && !place.is_taken());
        let second = place.take().unwrap().unwrap();
        assert!(!place.folder().join("file").exists());
        place.close().unwrap();
        assert!(!place.is_taken() && place.folder().exists());
        place.clear().unwrap();
        assert!(!place.folder().exists());
        drop(second);
    }

    #[test]
    fn it_is_quiet_a_while_after_the_last_start() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(quiet_in_folder(top.path()), None);
        note_start_in(top.path()).unwrap();
        assert!(quiet_in_folder(top.path()).is_some_and(|left| left <= QUIET));
        File::open(top.path().join(STARTED)).unwrap().set_modified(SystemTime::now() - 2 * QUIET).unwrap();
        assert_eq!(quiet_in_folder(top.path()), None);
        note_start_in(top.path()).unwrap();
        assert!(quiet_in_folder(top.path()).is_some());
    }
}
