//! The files that tell a container of names, `/etc/hosts` and its like, written anew while it runs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use proto::ErrorKind;
use proto::gcs::wire::NameFile;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Names that there are.
const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// The longest that is shown.
const MOST_BYTES: u64 = 64 << 10;

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
    let flags = OFlags::WRONLY | OFlags::TRUNC;
    // The container's links lead nowhere outside the container.
    File::from(open_in(first, &file.name, flags, ResolveFlags::IN_ROOT)?).write_all(&file.text)
}

fn open_in(first: u32, name: &str, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{first}/root"), folder, Mode::empty())?;
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(openat2(&root, format!("etc/{name}"), flags, Mode::empty(), resolve)?)
}

/// The text of one of the files as the container with this first process sees it. Nothing for other paths, and where the
/// container has no plain file there that is small and text.
#[must_use]
pub fn read(first: u32, path: &Path) -> Option<String> {
    let name = path.strip_prefix("/etc").ok()?.to_str().filter(|name| NAMES.contains(name))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let opened = open_in(first, name, OFlags::RDONLY, resolve);
    let file = opened.inspect_err(|error| tracing::debug!("cannot read {}: {error}", path.display())).ok()?;
    let file = File::from(file);
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut text = String::new();
    let count = file.take(MOST_BYTES + 1).read_to_string(&mut text).ok()?;
    (count as u64 <= MOST_BYTES).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_names_are_written() {
        let file = NameFile { name: "../passwd".into(), ..NameFile::default() };
        assert_eq!(write(std::process::id(), &[file]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn only_files_of_names_are_read() {
        assert_eq!(read(std::process::id(), Path::new("/etc/passwd")), None);
        assert_eq!(read(std::process::id(), Path::new("/etc/../etc/hosts")), None);
        let hosts = std::fs::read_to_string("/etc/hosts").ok();
        assert_eq!(read(std::process::id(), Path::new("/etc/hosts")), hosts);
    }
}
