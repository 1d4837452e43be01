//! One engine per root folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail};

/// A root folder that belongs to this engine until drop. The lock is the kernel's, so that a killed engine leaves none.
#[derive(Debug)]
pub struct RootLock {
    _file: File,
}

impl RootLock {
    /// Makes the folder if needed and takes it.
    ///
    /// # Errors
    /// One line that says what to do: the folder cannot be made or written, or another engine (its pid) has it.
    pub fn acquire(root: &Path, flag: &str) -> anyhow::Result<Self> {
        let unwritable =
            || format!("cannot write to {} ({flag}); choose a folder that this user may write", root.display());
        std::fs::create_dir_all(root).with_context(unwritable)?;
        let path = root.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                file.read_to_string(&mut owner).context("cannot read the lock's owner")?;
                bail!(
                    "{} ({flag}) is in use by another bulkheadd, pid {}; stop it or choose another folder",
                    root.display(),
                    owner.trim()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", path.display())),
        }
        file.set_len(0).and_then(|()| file.rewind()).with_context(unwritable)?;
        writeln!(file, "{}", std::process::id()).with_context(unwritable)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_engine_is_told_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = RootLock::acquire(dir.path(), "--data-root").unwrap();
        let error = format!("{:#}", RootLock::acquire(dir.path(), "--data-root").unwrap_err());
        assert!(error.contains(&format!("pid {};", std::process::id())), "{error}");
        drop(first);
        RootLock::acquire(dir.path(), "--data-root").unwrap();
    }

    #[test]
    fn a_root_that_is_a_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let error = format!("{:#}", RootLock::acquire(&dir.path().join("f"), "--data-root").unwrap_err());
        assert!(error.contains("--data-root"), "{error}");
    }
}
