//! A path as `docker cp` gives it: which node it names, and what that is called.
//!
//! A link that the last part names is not followed; one before it is, and a trailing slash or `/.` asks for the folder
//! behind it.
//!
//! Source: moby, `container.ResolvePath`, `archive.PreserveTrailingDotOrSeparator`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use proto::files::PathStat;
use rustix::fs::{AtFlags, FileType, OFlags, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;

use super::entry::Time;
use super::error::ArchiveError;
use crate::rootpath::Root;

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// A path, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The folder that is looked up; links in it are followed.
    folder: PathBuf,
    /// The name in it; none when the folder itself is meant.
    name: Option<OsString>,
    /// What it is called: the path's last part.
    pub base: String,
}

/// What a path leads to.
pub(super) enum Place {
    /// A folder, with no regard to its name.
    Folder(OwnedFd),
    /// A name in a folder.
    Named { folder: OwnedFd, name: OsString, stat: Box<Stat> },
}

impl Wanted {
    pub fn parse(path: &str) -> Self {
        let mut names: Vec<&OsStr> = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::ParentDir => drop(names.pop()),
                Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
            }
        }
        let whole: PathBuf = std::iter::once(OsStr::new("/")).chain(names.iter().copied()).collect();
        let last = names.last().map(|name| name.to_string_lossy().into_owned());
        let dot = path.ends_with("/.") || path == ".";
        match last {
            None => Self { folder: whole, name: None, base: if dot { "." } else { "/" }.to_owned() },
            Some(_) if dot => Self { folder: whole, name: None, base: ".".to_owned() },
            Some(base) if path.ends_with('/') => Self { folder: whole, name: None, base },
            Some(base) => {
                let name = whole.file_name().map(OsStr::to_owned);
                Self { folder: whole.parent().unwrap_or(Path::new("/")).to_owned(), name, base }
            }
        }
    }

    /// The path without what a trailing slash means.
    fn whole(&self) -> PathBuf {
        self.name.as_ref().map_or_else(|| self.folder.clone(), |name| self.folder.join(name))
    }

    /// Looks it up.
    pub fn find(&self, root: &Root) -> Result<Place, ArchiveError> {
        let shown = self.whole();
        let failed = |error: Errno| ArchiveError::at("find", shown.as_os_str().as_bytes())(error);
        let folder = root.resolve(&self.folder, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
        let Some(name) = &self.name else { return Ok(Place::Folder(folder)) };
        let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        Ok(Place::Named { folder, name: name.clone(), stat: Box::new(stat) })
    }

    /// What is there.
    pub fn stat(&self, root: &Root) -> Result<PathStat, ArchiveError> {
        let stat = match self.find(root)? {
            Place::Folder(folder) => {
                fstat(folder).map_err(|error| ArchiveError::at("look at", self.base.as_bytes())(error))?
            }
            Place::Named { stat, .. } => *stat,
        };
        let link_target = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = behind_links(root, &self.whole());
            let target = target.map_err(|error| ArchiveError::at("follow", self.base.as_bytes())(error))?;
            target.to_string_lossy().into_owned()
        } else {
            String::new()
        };
        let Time { seconds, nanoseconds } = Time::of(&stat);
        Ok(PathStat {
            name: self.base.clone(),
            size: stat.st_size,
            mode: go_mode(stat.st_mode),
            modified_seconds: seconds,
            modified_nanoseconds: nanoseconds,
            link_target,
        })
    }
}

/// Where a path leads to, from the root and free of links. What does not exist stands for itself.
pub(super) fn behind_links(root: &Root, path: &Path) -> rustix::io::Result<PathBuf> {
    let names = |path: &Path| -> Vec<OsString> {
        let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut ahead: VecDeque<OsString> = names(path).into();
    let mut plain = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            plain.pop();
            continue;
        }
        plain.push(name);
        let found = match root.resolve(&plain, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other?,
        };
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP);
        }
        let target = PathBuf::from(OsString::from_vec(readlinkat(&found, "", Vec::new())?.into_bytes()));
        plain.pop();
        if target.is_absolute() {
            plain = PathBuf::from("/");
        }
        names(&target).into_iter().rev().for_each(|name| ahead.push_front(name));
    }
    Ok(plain)
}

/// A mode as Go writes it. Source: Go, package io/fs, `FileMode`.
fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::RegularFile | FileType::Unknown => 0,
    };
    let flag = |bit: u32, go: u32| if mode & bit == 0 { 0 } else { 1 << go };
    mode & 0o777 | kind | flag(0o4000, 23) | flag(0o2000, 22) | flag(0o1000, 20)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_last_part_is_a_name_unless_a_slash_follows() {
        for (path, folder, name, base) in [
            ("/a/b", "/a", Some("b"), "b"),
            ("a", "/", Some("a"), "a"),
            ("/a/b/", "/a/b", None, "b"),
            ("/a/b/.", "/a/b", None, "."),
            ("/a/../../b/./c", "/b", Some("c"), "c"),
            ("/", "/", None, "/"),
            ("", "/", None, "/"),
            (".", "/", None, "."),
            ("/.", "/", None, "."),
            ("/a/..", "/", None, "/"),
        ] {
            let wanted = Wanted::parse(path);
            let expected = Wanted { folder: folder.into(), name: name.map(Into::into), base: base.into() };
            assert_eq!(wanted, expected, "{path:?}");
        }
    }

    #[test]
    fn a_path_is_told_with_where_its_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("real/sub")).unwrap();
        std::fs::write(folder.path().join("real/file"), "1234").unwrap();
        symlink("../../../real", folder.path().join("link")).unwrap();
        symlink("/link/none/x", folder.path().join("dangling")).unwrap();
        symlink("loop", folder.path().join("loop")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let stat = |path: &str| Wanted::parse(path).stat(&root);
        let file = stat("/link/file").unwrap();
        assert_eq!((file.size, file.link_target.as_str(), file.name.as_str()), (4, "", "file"));
        let link = stat("/link").unwrap();
        assert_eq!((link.mode >> 27 & 1, link.link_target.as_str()), (1, "/real"));
        assert_eq!(stat("/link/").unwrap().mode >> 31, 1);
        assert_eq!(stat("/dangling").unwrap().link_target, "/real/none/x");
        assert!(stat("/loop").is_err() && stat("/none").is_err() && stat("/real/file/").is_err());
    }

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o041_777), 1 << 31 | 1 << 20 | 0o777);
        assert_eq!(go_mode(0o104_755), 1 << 23 | 0o755);
        assert_eq!(go_mode(0o020_600), 1 << 26 | 1 << 21 | 0o600);
    }
}
