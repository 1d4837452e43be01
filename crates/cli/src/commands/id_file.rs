//! `--cidfile`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{CliError, CliResult};

/// The file for a container's id, made before the container. Dropped without an id, it is removed.
#[derive(Debug)]
pub(super) struct IdFile {
    path: PathBuf,
    file: File,
    written: bool,
}

impl IdFile {
    /// Makes the file. What is there already, be it a link that leads nowhere, is an earlier container's and stays.
    ///
    /// # Errors
    /// It is there; what the file system says.
    pub(super) fn make(path: &Path) -> CliResult<Self> {
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        let file = made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => CliError::Usage(format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            )),
            _ => CliError::local(format!("cannot make {}", path.display()))(error),
        })?;
        Ok(Self { path: path.to_owned(), file, written: false })
    }

    /// Writes the id.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn write(mut self, id: &str) -> CliResult<()> {
        let written = self.file.write_all(id.as_bytes());
        written.map_err(CliError::local(format!("cannot write {}", self.path.display())))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.written
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            super::warn(Some(&format!("cannot remove {}: {error}", self.path.display())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case F65.
    #[test]
    fn a_link_is_not_followed_and_a_file_without_an_id_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link, plain) = (folder.path().join("t"), folder.path().join("l"), folder.path().join("p"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let refused = IdFile::make(&link).unwrap_err().to_string();
        assert!(refused.starts_with("container ID file found"), "{refused}");
        assert!(!target.exists());
        drop(IdFile::make(&plain).unwrap());
        assert!(!plain.exists());
        IdFile::make(&plain).unwrap().write("abc").unwrap();
        assert_eq!(std::fs::read_to_string(&plain).unwrap(), "abc");
        assert!(IdFile::make(&plain).is_err());
    }
}
