//! A tree as a tar stream, from an open folder downwards.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom as StdSeek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, SeekFrom, Stat, fstat, openat, readlinkat, seek, statat};
use rustix::io::Errno;

use super::attributes::{self, Wanted};
use super::entry::{Entry, Kind};
use super::error::{ArchiveError, shown};
use super::layer::Own;
use super::writer::{Segments, TarWriter};

/// Folders in folders; each is held open while what is in it is read.
pub(super) const MOST_DEPTH: usize = 1000;
/// Bytes read at once.
const BUFFER_BYTES: usize = 128 << 10;
/// A file with more pieces than that is written with its holes.
const MOST_SEGMENTS: usize = 4096;
/// A file of which less than that is holes is written whole.
const LEAST_HOLES: u64 = 64 << 10;
const BLOCK: u64 = 512;

/// How a tree is to be seen.
pub(super) enum View<'a> {
    /// As it is.
    Tree,
    /// As the changes that overlayfs has noted in it; without what the engine has made.
    Layer(&'a Own),
}

/// Writes trees into one archive.
pub(super) struct Packer<'a, W: Write> {
    pub tar: TarWriter<W>,
    pub view: View<'a>,
    /// Files with several names, by device and inode: the name under which each was written.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

/// A folder that is being read.
struct Level {
    folder: OwnedFd,
    names: std::vec::IntoIter<OsString>,
    path: Vec<u8>,
}

impl Level {
    fn read(folder: OwnedFd, path: Vec<u8>) -> Result<Self, ArchiveError> {
        let names = names(&folder).map_err(ArchiveError::at("list", &path))?;
        Ok(Self { folder, names: names.into_iter(), path })
    }
}

impl<'a, W: Write> Packer<'a, W> {
    pub fn new(to: W, view: View<'a>) -> Self {
        Self { tar: TarWriter::new(to), view, links: HashMap::new(), buffer: vec![0; BUFFER_BYTES] }
    }

    /// Writes everything in a folder. Shape: `path` is put before the names; the folder itself is written under it, too, if
    /// there is one.
    pub fn folder(&mut self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<(), ArchiveError> {
        let folder = readable(folder).map_err(ArchiveError::at("open", path))?;
        if !path.is_empty() {
            self.folder_itself(&folder, path)?;
        }
        let below = if path == b"./" && self.is_layer() { Vec::new() } else { path.to_vec() };
        let mut levels = vec![Level::read(folder, below)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = join(&level.path, &name);
            if let Some(folder) = self.node(level.folder.as_fd(), &name, &path)? {
                if levels.len() == MOST_DEPTH {
                    return Err(ArchiveError::TooDeep(shown(&path)));
                }
                levels.push(Level::read(folder, path)?);
            }
        }
        Ok(())
    }

    /// Writes a name in a folder under a path; a folder's content is not written, but the folder given back.
    pub fn node(&mut self, folder: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> Result<Option<OwnedFd>, ArchiveError> {
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since the folder was read.
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(ArchiveError::at("look at", path))?,
        };
        if let View::Layer(own) = self.view
            && self.layer_node(own, folder, name, path, &stat)?
        {
            return Ok(None);
        }
        let Some(mut entry) = Entry::of(path, &stat) else { return Ok(None) };
        match entry.kind {
            Kind::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = match openat(folder, name, flags, Mode::empty()) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                    other => other.map_err(ArchiveError::at("open", path))?,
                };
                self.folder_itself(&opened, path)?;
                return Ok(Some(opened));
            }
            Kind::Regular => return self.file(folder, name, path).map(|()| None),
            Kind::Symlink => {
                let target = readlinkat(folder, name, Vec::new()).map_err(ArchiveError::at("read", path))?;
                entry.link = target.into_bytes();
            }
            Kind::HardLink | Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => {}
        }
        if !self.link_to_known(&entry, &stat)? {
            self.tar.begin(&entry).map_err(ArchiveError::Stream)?;
        }
        Ok(None)
    }

    fn folder_itself(&mut self, folder: &OwnedFd, path: &[u8]) -> Result<(), ArchiveError> {
        let stat = fstat(folder).map_err(ArchiveError::at("look at", path))?;
        let Some(mut entry) = Entry::of(path, &stat) else { return Ok(()) };
        if entry.path.last() != Some(&b'/') {
            entry.path.push(b'/');
        }
        entry.xattrs = attributes::read(folder, self.wanted()).map_err(ArchiveError::at("read", path))?;
        self.tar.begin(&entry).map_err(ArchiveError::Stream)?;
        if self.is_layer() && attributes::is_opaque(folder).map_err(ArchiveError::at("read", path))? {
            self.opaque(&entry.path)?;
        }
        Ok(())
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> Result<(), ArchiveError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
            other => other.map_err(ArchiveError::at("open", path))?,
        };
        let stat = fstat(&file).map_err(ArchiveError::at("look at", path))?;
        let entry = Entry::of(path, &stat).filter(|entry| entry.kind == Kind::Regular);
        // Something else is there by now.
        let Some(mut entry) = entry else { return Ok(()) };
        if self.link_to_known(&entry, &stat)? {
            return Ok(());
        }
        entry.xattrs = attributes::read(&file, self.wanted()).map_err(ArchiveError::at("read", path))?;
        let mut file = File::from(file);
        match segments(&file, &stat, entry.size) {
            Some(segments) => {
                self.tar.begin_sparse(&entry, &segments).map_err(ArchiveError::Stream)?;
                for (offset, length) in segments {
                    file.seek(StdSeek::Start(offset)).map_err(ArchiveError::at("read", path))?;
                    self.content(&mut file, length, path)?;
                }
                Ok(())
            }
            None => {
                self.tar.begin(&entry).map_err(ArchiveError::Stream)?;
                self.content(&mut file, entry.size, path)
            }
        }
    }

    /// Writes exactly so many bytes: what a file has lost meanwhile is zeros, what it has gained is left out.
    fn content(&mut self, file: &mut File, length: u64, path: &[u8]) -> Result<(), ArchiveError> {
        let mut left = length;
        while left > 0 {
            let wanted = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let count = match file.read(&mut self.buffer[..wanted]) {
                Ok(0) => {
                    self.buffer[..wanted].fill(0);
                    wanted
                }
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArchiveError::at("read", path)(error)),
            };
            self.tar.content(&self.buffer[..count]).map_err(ArchiveError::Stream)?;
            left -= count as u64;
        }
        Ok(())
    }

    /// Writes a link if the node was written under another name already. True if it was.
    fn link_to_known(&mut self, entry: &Entry, stat: &Stat) -> Result<bool, ArchiveError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            let link = Entry { kind: Kind::HardLink, link: first.clone(), size: 0, ..entry.clone() };
            self.tar.begin(&link).map_err(ArchiveError::Stream)?;
            return Ok(true);
        }
        self.links.insert((stat.st_dev, stat.st_ino), entry.path.clone());
        Ok(false)
    }

    fn is_layer(&self) -> bool {
        matches!(self.view, View::Layer(_))
    }

    fn wanted(&self) -> Wanted {
        if self.is_layer() { Wanted::All } else { Wanted::Portable }
    }
}

/// Where the data of a file lies, if it is worth to leave the holes out.
fn segments(file: &File, stat: &Stat, size: u64) -> Option<Segments> {
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
    if stored.saturating_add(LEAST_HOLES) > size {
        return None;
    }
    let mut segments = Segments::new();
    let mut position = 0;
    while position < size {
        let begin = match seek(file, SeekFrom::Data(position)) {
            Ok(begin) => begin.min(size),
            Err(Errno::NXIO) => size,
            Err(_) => return None,
        };
        if begin == size {
            break;
        }
        let end = seek(file, SeekFrom::Hole(begin)).ok()?.min(size);
        segments.push((begin, end - begin));
        if segments.len() > MOST_SEGMENTS || end <= position {
            return None;
        }
        position = end;
    }
    // Where the file ends is told by a last piece without bytes.
    segments.push((size, 0));
    seek(file, SeekFrom::Start(0)).ok()?;
    Some(segments)
}

/// Opens a folder that was only looked up, so that it can be read.
pub(super) fn readable(folder: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The names in a folder, in order.
pub(super) fn names(folder: impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn join(folder: &[u8], name: &OsStr) -> Vec<u8> {
    let mut path = folder.to_vec();
    if !matches!(path.last(), None | Some(b'/')) {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path
}
