//! The files that tell a container of names, `/etc/hosts` and its like, written anew while it runs.

use std::fs::File;
use std::io::{self, Write};

use proto::ErrorKind;
use proto::gcs::wire::NameFile;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Names that there are.
const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// A file that was not written.
#[derive(Debug, thiserror::Error)]
pub enum NameFileError {
    /// It is none of those.
    #[error("{0:?} is no file of names")]
    Unknown(String),
    /// It cannot be written.
    #[error("cannot write /etc/{name}")]
    Write {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NameFileError {
    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::InvalidArgument,
            Self::Write { .. } => ErrorKind::Internal,
        }
    }
}

/// Writes files as the container with this first process sees them. Their inodes stay, so whoever has them open sees the
/// change. In a container that can write nothing they stay as they are.
///
/// # Errors
/// [`NameFileError`]; those before it are written.
pub fn write(first: u32, files: &[NameFile]) -> Result<(), NameFileError> {
    for file in files {
        if !NAMES.contains(&file.name.as_str()) {
            return Err(NameFileError::Unknown(file.name.clone()));
        }
        match write_one(first, file) {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
                tracing::info!("/etc/{} cannot be written in this container", file.name);
            }
            outcome => outcome.map_err(|source| NameFileError::Write { name: file.name.clone(), source })?,
        }
    }
    Ok(())
}

fn write_one(first: u32, file: &NameFile) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{first}/root"), flags, Mode::empty())?;
    // The container's links lead nowhere outside the container.
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = format!("etc/{}", file.name);
    let mut opened = File::from(openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?);
    opened.write_all(&file.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_names_are_written() {
        let file = NameFile { name: "../passwd".into(), ..NameFile::default() };
        assert_eq!(write(std::process::id(), &[file]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
