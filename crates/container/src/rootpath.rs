//! Paths within a container's root, resolved so that nothing in it can lead out of it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat2, readlinkat,
};
use rustix::io::Errno;

/// A container's root folder: what is looked up in it stays in it, wherever its links point to.
///
/// Source: openat2(2), `RESOLVE_IN_ROOT`.
pub struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Opens the folder.
    ///
    /// # Errors
    /// It does not exist, or is no folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Opens a path as a process sees it whose root this folder is. Source: openat2(2), `RESOLVE_IN_ROOT`.
    pub(crate) fn resolve(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
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
    pub(crate) fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
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

    /// Whether this name in the root is a folder itself, or nothing at all; a link to a folder is neither.
    pub(crate) fn is_plain_folder_or_nothing(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what a path leads to, if it leads there through a link and it does not exist: mount points such as an
    /// `/etc/resolv.conf` that points to a file which only a running system has.
    pub(crate) fn create_behind_links(&self, path: &Path, kind: FileType) -> io::Result<()> {
        let Some(target) = self.missing_behind_links(path)? else { return Ok(()) };
        if kind == FileType::Directory {
            return self.create_folders(&target);
        }
        self.create_folders(target.parent().unwrap_or(Path::new("")))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.folder, &target, flags, Mode::from_raw_mode(0o644), resolve) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a path leads to, free of links; `None` if that exists or if no link is on the way.
    fn missing_behind_links(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut ahead: VecDeque<OsString> = components(path).collect();
        let mut plain = PathBuf::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                plain.pop();
                continue;
            }
            plain.push(name);
            let found = match self.resolve(&plain, OFlags::PATH | OFlags::NOFOLLOW) {
                Err(Errno::NOENT) if links == 0 => return Ok(None),
                Err(Errno::NOENT) => {
                    let rest: PathBuf = plain.iter().map(OsStr::to_owned).chain(ahead).collect();
                    return Ok(Some(plain_components(&rest).into_iter().collect()));
                }
                other => other?,
            };
            if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = PathBuf::from(OsString::from_vec(readlinkat(&found, "", Vec::new())?.into_bytes()));
                plain.pop();
                if target.is_absolute() {
                    plain.clear();
                }
                let before: Vec<OsString> = components(&target).collect();
                before.into_iter().rev().for_each(|name| ahead.push_front(name));
            }
        }
        Ok(None)
    }

    /// A path that exists, to mount something on it.
    ///
    /// # Errors
    /// What the kernel says, `NotFound` among it.
    pub fn open_path(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.resolve(path, OFlags::PATH)?)
    }

    /// As [`Root::open_path`], on the root's own mount.
    ///
    /// # Errors
    /// `CrossesDevices` where a mount is on the way, or at the end.
    pub fn open_unmounted(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match openat2(&self.folder, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Whether a path leads to an empty file, or could lead to a file in a folder that exists.
    ///
    /// # Errors
    /// What the kernel says, unless it says that there is no such thing.
    pub fn is_empty_or_missing(&self, path: &Path) -> io::Result<bool> {
        match self.resolve(path, OFlags::PATH) {
            Ok(file) => {
                let stat = fstat(&file)?;
                Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0)
            }
            Err(Errno::NOENT) => {
                let folder = self.resolve(path.parent().unwrap_or(Path::new(".")), OFlags::PATH | OFlags::DIRECTORY);
                Ok(folder.is_ok())
            }
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A file to mount another one on it: made, with its folders, where it does not exist.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.resolve(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        self.create_behind_links(path, FileType::RegularFile)?;
        self.create_folders(path.parent().unwrap_or(Path::new("")))?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat2(&self.folder, path, flags, Mode::from_raw_mode(0o644), resolve) {
            Ok(_) => self.open_path(path),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a folder and its parents, mode 0755, where they do not exist.
    pub(crate) fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.create_folders_of(path, None)
    }

    /// As [`Root::create_folders`]; the folders that are made belong to `owner`.
    pub(crate) fn create_folders_of(&self, path: &Path, owner: Option<(Uid, Gid)>) -> io::Result<()> {
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
                    match (mkdirat(&parent, name, Mode::from_raw_mode(0o755)), owner) {
                        (Ok(()), Some((user, group))) => {
                            chownat(&parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                        }
                        (Ok(()), None) | (Err(Errno::EXIST), _) => {}
                        (Err(error), _) => return Err(error.into()),
                    }
                    self.resolve(&done, folder)?
                }
                other => other?,
            };
        }
        Ok(())
    }
}

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

/// A path's names, `..` among them.
fn components(path: &Path) -> impl Iterator<Item = OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned())
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
        for (name, plain) in [("etc", true), ("none", true), ("out", false), ("secret", false)] {
            assert_eq!(root.is_plain_folder_or_nothing(name).unwrap(), plain, "{name}");
        }
    }

    #[test]
    fn mount_points_are_made_behind_links() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        fs::create_dir_all(inner.join("etc")).unwrap();
        for (link, target) in [
            ("etc/file", "../run/x/../resolve/stub"),
            ("etc/out", "../../../../escaped/file"),
            ("etc/absolute", "/run/absolute"),
            ("etc/twice", "file2"),
            ("etc/file2", "/run/second"),
            ("etc/loop", "loop"),
            ("etc/folder", "/made/folder"),
        ] {
            symlink(target, inner.join(link)).unwrap();
        }
        let root = Root::open(&inner).unwrap();
        for (path, made) in [
            ("/etc/file", "run/resolve/stub"),
            ("/etc/out", "escaped/file"),
            ("/etc/absolute", "run/absolute"),
            ("/etc/twice", "run/second"),
        ] {
            root.create_behind_links(Path::new(path), FileType::RegularFile).unwrap();
            assert!(inner.join(made).is_file(), "{path}");
            // Again: it exists.
            root.create_behind_links(Path::new(path), FileType::RegularFile).unwrap();
        }
        root.create_behind_links(Path::new("/etc/folder/below"), FileType::Directory).unwrap();
        assert!(inner.join("made/folder/below").is_dir());
        assert!(root.create_behind_links(Path::new("/etc/loop"), FileType::RegularFile).is_err());
        // What is missing without a link is libcontainer's to make.
        root.create_behind_links(Path::new("/opt/none"), FileType::Directory).unwrap();
        assert!(!inner.join("opt").exists());
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fifo_does_not_hold_up() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join("passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Root::open(folder.path()).unwrap().read(Path::new("passwd"), 10).is_err());
    }
}
