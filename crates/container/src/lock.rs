//! Keeps a container from being removed while a helper is still making it: the helper of a caller that was killed goes on
//! for some milliseconds, and what it makes after the removal nobody would ever find.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

const NAME: &str = "lock";
/// How long a helper may need to end. (Longer only if a hook hangs.)
const PATIENCE: Duration = Duration::from_secs(10);

/// Held while a container is made or removed. It is the process', not the open file's, so that the container's own process,
/// forked from the helper, does not hold it.
///
/// Source: `fcntl_locking(2)`.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it for making a container. Fails when the container was removed before.
    pub fn for_making(folder: &Path) -> io::Result<Self> {
        let path = folder.join(NAME);
        let file = File::options().read(true).write(true).open(&path)?;
        acquire(&file)?;
        // Removed while we waited?
        if path.metadata()?.ino() == file.metadata()?.ino() { Ok(Self { _file: file }) } else { Err(gone()) }
    }

    /// Takes it for removing a container, or for beginning to make one; `None` when there is nothing to remove any more.
    pub fn for_removing(folder: &Path) -> io::Result<Option<Self>> {
        match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(NAME)) {
            Ok(file) => acquire(&file).map(|()| Some(Self { _file: file })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the file, so that a helper finds it.
    pub fn prepare(folder: &Path) -> io::Result<()> {
        File::create(folder.join(NAME)).map(drop)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the container was removed meanwhile")
}

fn acquire(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN | Errno::ACCESS | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Lock::for_making(folder.path()).is_err(), "nobody began to make it");
        Lock::prepare(folder.path()).unwrap();
        drop(Lock::for_making(folder.path()).unwrap());
        assert!(Lock::for_removing(folder.path()).unwrap().is_some());
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(Lock::for_removing(folder.path()).unwrap().is_none());
        assert!(Lock::for_making(folder.path()).is_err());
    }
}
