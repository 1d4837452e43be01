//! What a container has changed: its upper folder beside the layers below it.
//!
//! A name only in the upper folder was added, a whiteout deletes one, everything else that differs in what `stat` tells was
//! changed, and so was every folder with a change in it, as Docker counts it.
//!
//! Source: moby, pkg/archive/changes.go.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto::files::ChangeLine;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use super::attributes;
use super::entry::{is_folder, is_whiteout};
use super::error::{ArchiveError, shown};
use super::layer::Own;
use super::pack::{MOST_DEPTH, join, names, readable};

const CHANGED: u8 = 0;
const ADDED: u8 = 1;
const DELETED: u8 = 2;

/// Lists the changes. Each is told once, a folder after what is in it.
pub(super) fn list(
    upper: BorrowedFd<'_>,
    lower: BorrowedFd<'_>,
    own: &Own,
    tell: &mut dyn FnMut(&ChangeLine) -> std::io::Result<()>,
) -> Result<(), ArchiveError> {
    let upper = readable(upper).map_err(ArchiveError::at("open", b"/"))?;
    let lower = readable(lower).map_err(ArchiveError::at("open", b"/"))?;
    let mut comparison = Comparison { own, tell };
    comparison.folder(&upper, Some(&lower), b"", 0).map(drop)
}

struct Comparison<'a> {
    own: &'a Own,
    tell: &'a mut dyn FnMut(&ChangeLine) -> std::io::Result<()>,
}

/// What was found in a folder.
#[derive(Default, Clone, Copy)]
struct Found {
    /// A change.
    change: bool,
    /// Something that the engine has made.
    own: bool,
}

impl Comparison<'_> {
    fn folder(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        path: &[u8],
        depth: usize,
    ) -> Result<Found, ArchiveError> {
        if depth == MOST_DEPTH {
            return Err(ArchiveError::TooDeep(shown(path)));
        }
        let mut found = Found::default();
        let here = names(upper).map_err(ArchiveError::at("list", path))?;
        if let Some(lower) = lower
            && attributes::is_opaque(upper).map_err(ArchiveError::at("read", path))?
        {
            for name in names(lower).map_err(ArchiveError::at("list", path))? {
                if here.binary_search(&name).is_err() {
                    self.tell(DELETED, &join(path, &name), &mut found)?;
                }
            }
        }
        for name in &here {
            self.node(upper, lower, name, (path, depth), &mut found)?;
        }
        Ok(found)
    }

    fn node(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        name: &OsStr,
        (folder, depth): (&[u8], usize),
        found: &mut Found,
    ) -> Result<(), ArchiveError> {
        let path = join(folder, name);
        let Some(now) = look(upper, name, &path)? else { return Ok(()) };
        let before = match lower {
            Some(lower) => look(lower, name, &path)?,
            None => None,
        };
        if is_whiteout(&now) {
            return if before.is_some() { self.tell(DELETED, &path, found) } else { Ok(()) };
        }
        let untouched = before.is_none_or(|before| before.st_size == 0);
        if untouched && self.own.is_file(&path, &now) {
            found.own = true;
            return Ok(());
        }
        let mut below = Found::default();
        if is_folder(&now) {
            let lower = lower.filter(|_| before.as_ref().is_some_and(is_folder));
            let lower = lower.map(|lower| open(lower, name, &path)).transpose()?;
            below = self.folder(&open(upper, name, &path)?, lower.as_ref(), &path, depth + 1)?;
        }
        match before {
            None if !below.change && is_folder(&now) && self.own.has(&path) => {
                found.own = true;
                Ok(())
            }
            None => self.tell(ADDED, &path, found),
            Some(before) if !below.change && is_same(&before, &now, below.own) => Ok(()),
            Some(_) => self.tell(CHANGED, &path, found),
        }
    }

    fn tell(&mut self, kind: u8, path: &[u8], found: &mut Found) -> Result<(), ArchiveError> {
        found.change = true;
        let line = ChangeLine { kind, path: format!("/{}", String::from_utf8_lossy(path)) };
        (self.tell)(&line).map_err(ArchiveError::Stream)
    }
}

fn look(folder: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<Option<Stat>, ArchiveError> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(ArchiveError::at("look at", path)(error)),
    }
}

fn open(folder: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<OwnedFd, ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder.as_fd(), name, flags, Mode::empty()).map_err(ArchiveError::at("open", path))
}

/// A node that was only copied up is no change. The time of a folder in which the engine has made something tells nothing.
fn is_same(before: &Stat, now: &Stat, ignore_time: bool) -> bool {
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    let is_directory = FileType::from_raw_mode(now.st_mode) == FileType::Directory;
    (before.st_mode, before.st_uid, before.st_gid) == (now.st_mode, now.st_uid, now.st_gid)
        && before.st_rdev == now.st_rdev
        && (is_directory || before.st_size == now.st_size)
        && (ignore_time || time(before) == time(now))
}
