//! Files without a name. containerd's bundles are on a tmpfs, so what is large is not made in them; and who is killed could not
//! remove what is made elsewhere. These end with who holds them: the shim, until the VM has them, and then the VMM.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::unique::unique_name;

/// One of them, open for reading and writing.
#[derive(Debug)]
pub struct Unnamed(File);

impl Unnamed {
    /// Makes one on the file system of `folder`, which exists.
    ///
    /// # Errors
    /// The folder's file system has no room, or is read-only.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
            // A file system that has only files with names, as overlayfs of older kernels.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                let path = folder.join(unique_name());
                let file = options.create_new(true).open(&path)?;
                fs::remove_file(&path)?;
                Ok(Self(file))
            }
            outcome => outcome.map(Self),
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// By which this process may open it again for as long as it is held.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn it_is_found_by_its_path_only_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let unnamed = Unnamed::new(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        unnamed.file().write_all(b"content").unwrap();
        let mut again = File::options().read(true).write(true).open(unnamed.path()).unwrap();
        drop(unnamed);
        let mut text = String::new();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert!(Unnamed::new(&folder.path().join("none")).is_err());
    }
}
