//! Paths within a container's root, resolved so that nothing in it can lead out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::io::Errno;

/// A container's root folder.
pub struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Opens the folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Opens a path as a process sees it whose root this folder is. Source: openat2(2), `RESOLVE_IN_ROOT`.
    fn resolve(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // A rename or mount happened meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Reads a regular file of at most `limit` bytes; `None` if it does not exist.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        // Neither a FIFO nor a terminal may hold us up.
        let fd = match self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        let mut bytes = Vec::new();
        File::from(fd).take(limit + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
            Ok(Some(bytes))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes")))
        }
    }

    /// Makes a folder and its parents, mode 0755, where they do not exist.
    pub fn create_folders(&self, path: &Path) -> io::Result<()> {
        let folder = OFlags::PATH | OFlags::DIRECTORY;
        match self.resolve(path, folder) {
            Err(Errno::NOENT) => {}
            other => return Ok(other.map(drop)?),
        }
        let mut parent = self.resolve(Path::new("."), folder)?;
        let mut done = PathBuf::new();
        for name in plain_components(path) {
            done.push(name);
            parent = match self.resolve(&done, folder) {
                Err(Errno::NOENT) => {
                    match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.resolve(&done, folder)?
                }
                other => other?,
            };
        }
        Ok(())
    }
}

/// A path's names, `..` taken away with the name before it.
fn plain_components(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_nowhere_outside() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        fs::create_dir_all(inner.join("etc")).unwrap();
        fs::write(outer.path().join("secret"), "outside").unwrap();
        fs::write(inner.join("secret"), "inside").unwrap();
        symlink("../secret", inner.join("relative")).unwrap();
        symlink("/secret", inner.join("absolute")).unwrap();
        symlink(outer.path(), inner.join("out")).unwrap();
        symlink("loop", inner.join("loop")).unwrap();
        let root = Root::open(&inner).unwrap();

        for name in ["relative", "/absolute", "../../secret"] {
            assert_eq!(root.read(Path::new(name), 100).unwrap().unwrap(), b"inside", "{name}");
        }
        assert_eq!(root.read(Path::new("loop"), 100).unwrap(), None);
        assert_eq!(root.read(Path::new("none"), 100).unwrap(), None);
        assert!(root.read(Path::new("secret"), 3).is_err(), "bounded");
        assert!(root.read(Path::new("etc"), 100).is_err(), "a folder is no file");

        root.create_folders(Path::new("/a/../b/c/./d")).unwrap();
        assert!(inner.join("b/c/d").is_dir() && !inner.join("a").exists());
        root.create_folders(Path::new("/b/c/d")).unwrap();
        // A link out of the root leads to the same path inside of it, which does not exist and cannot be made.
        assert!(root.create_folders(Path::new("/out/new")).is_err());
        assert!(!outer.path().join("new").exists());
    }

    #[test]
    fn a_fifo_does_not_hold_up() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join("passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Root::open(folder.path()).unwrap().read(Path::new("passwd"), 10).is_err());
    }
}
