//! From a tar stream to a [`Context`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::{Context, Kind, Node};

/// Names in a context.
const MAX_ENTRIES: usize = 500_000;
/// Bytes of all names and link targets.
const MAX_NAME_BYTES: usize = 64 << 20;
/// Bytes of one path.
const MAX_PATH_BYTES: usize = 4095;

/// Fields of an entry's header. Source: POSIX, pax, "ustar Interchange Format".
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;

/// A stream that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It is no tar stream, or broke off.
    #[error("cannot read the build context")]
    Stream(#[source] io::Error),
    /// A name leads out, or through something that is no folder.
    #[error("the build context has an entry {0:?} that leads out of it, or through what is no folder")]
    Outside(String),
    /// A hard link to nothing.
    #[error("the build context has a hard link {0:?} to a file that it does not have")]
    Link(String),
    /// Too much of it.
    #[error("the build context is too large: {0}")]
    TooLarge(&'static str),
    /// The spool itself.
    #[error("cannot keep the build context")]
    Spool(#[source] io::Error),
}

impl SpoolError {
    /// True if the stream is at fault.
    #[must_use]
    pub fn is_clients(&self) -> bool {
        !matches!(self, Self::Spool(_))
    }
}

impl Context {
    /// An empty one. Shape: contents are kept in a nameless file in `folder`.
    ///
    /// # Errors
    /// [`SpoolError::Spool`].
    pub fn empty(folder: &Path) -> Result<Self, SpoolError> {
        let contents = nameless(folder).map_err(SpoolError::Spool)?;
        let nodes = BTreeMap::from([(Vec::new(), Node::plain_folder())]);
        Ok(Self { nodes, contents, written: 0, names_left: MAX_NAME_BYTES })
    }

    /// One that has a single file, of which nothing is known but its content and when it was changed, seconds since the epoch.
    ///
    /// # Errors
    /// As [`SpoolError`] says.
    pub fn of_file(
        folder: &Path,
        name: &str,
        modified: u64,
        mut content: impl Read,
        max_bytes: u64,
    ) -> Result<Self, SpoolError> {
        let mut context = Self::empty(folder)?;
        let kind = context.keep_content(&mut content, max_bytes)?;
        let node = Node { kind, mode: 0o600, modified, ..Node::plain_folder() };
        context.put(name.as_bytes().to_vec(), node).ok_or_else(|| SpoolError::Outside(name.to_owned()))?;
        Ok(context)
    }

    /// Takes a plain tar stream in, to its end. Shape: of `(top, below)`, `top` names are left out of every path, and `below` is
    /// put in their place.
    ///
    /// # Errors
    /// As [`SpoolError`] says.
    pub fn spool(
        folder: &Path,
        tar: impl Read,
        max_bytes: u64,
        (top, below): (usize, &str),
    ) -> Result<Self, SpoolError> {
        let mut context = Self::empty(folder)?;
        context.take_in(tar, max_bytes, (top, below))?;
        Ok(context)
    }

    /// As [`Context::spool`], beside what is there. Shape: `max_bytes` is for all contents together.
    ///
    /// # Errors
    /// As [`SpoolError`] says.
    pub fn take_in(&mut self, tar: impl Read, max_bytes: u64, (top, below): (usize, &str)) -> Result<(), SpoolError> {
        let mut archive = tar::Archive::new(tar);
        let room = Room { bytes: max_bytes, place: (top, below.as_bytes().to_vec()) };
        for entry in archive.entries().map_err(SpoolError::Stream)? {
            self.take(entry.map_err(SpoolError::Stream)?, &room)?;
        }
        // What follows the end, so that the client can send it.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(SpoolError::Stream)?;
        Ok(())
    }

    fn take<R: Read>(&mut self, mut entry: tar::Entry<'_, R>, room: &Room) -> Result<(), SpoolError> {
        let path = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&path).chars().take(300).collect::<String>();
        let plain = room.placed(&path).ok_or_else(|| SpoolError::Outside(shown()))?;
        let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        self.take_names(plain.len() + link.len() + 32)?;
        let header = entry.header();
        let mut node = Node {
            kind: Kind::Folder,
            mode: number(header, MODE, header.mode())? & 0o7777,
            uid: number(header, UID, header.uid())?,
            gid: number(header, GID, header.gid())?,
            modified: header.mtime().unwrap_or(0),
            xattrs: Vec::new(),
        };
        let device = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
        let device = (device.0.unwrap_or(0), device.1.unwrap_or(0));
        let kind = header.entry_type();
        node.xattrs = self.xattrs(&mut entry)?;
        node.kind = match kind {
            EntryType::Directory => Kind::Folder,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.keep_content(&mut entry, room.bytes)?
            }
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => {
                let target = room.placed(&link).and_then(|target| self.nodes.get(&target));
                let target = target.filter(|target| target.kind != Kind::Folder);
                let target = target.ok_or_else(|| SpoolError::Link(shown()))?;
                node = target.clone();
                node.kind.clone()
            }
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device { block: kind == EntryType::Block, number: device },
            // Global headers and the like.
            _ => return Ok(()),
        };
        self.put(plain, node).ok_or_else(|| SpoolError::Outside(shown()))
    }

    fn keep_content(&mut self, entry: &mut impl Read, max_bytes: u64) -> Result<Kind, SpoolError> {
        let (mut hash, offset) = (Sha256::new(), self.written);
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = entry.read(&mut buffer).map_err(SpoolError::Stream)?;
            if count == 0 {
                break;
            }
            self.written += count as u64;
            if self.written > max_bytes {
                return Err(SpoolError::TooLarge("too many bytes"));
            }
            hash.update(&buffer[..count]);
            self.contents.write_all(&buffer[..count]).map_err(SpoolError::Spool)?;
        }
        Ok(Kind::File { offset, bytes: self.written - offset, hash: hash.finalize().into() })
    }

    /// Puts a node at its path, with the folders above it. `None` if something above is no folder.
    fn put(&mut self, path: Vec<u8>, node: Node) -> Option<()> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = self.nodes.entry(path[..at].to_vec()).or_insert_with(Node::plain_folder);
            if above.kind != Kind::Folder {
                return None;
            }
        }
        if path.is_empty() && node.kind != Kind::Folder {
            return None;
        }
        if node.kind != Kind::Folder && self.nodes.get(&path).is_some_and(|old| old.kind == Kind::Folder) {
            let below: Vec<Vec<u8>> = self.below(&path).map(|(path, _)| path.clone()).collect();
            for path in below {
                self.nodes.remove(&path);
            }
        }
        self.nodes.insert(path, node);
        Some(())
    }

    fn take_names(&mut self, bytes: usize) -> Result<(), SpoolError> {
        let each = MAX_NAME_BYTES / MAX_ENTRIES;
        let left = self.names_left.checked_sub(bytes.max(each));
        self.names_left = left.ok_or(SpoolError::TooLarge("too many or too long names"))?;
        Ok(())
    }

    /// Extended attributes of programs and users.
    fn xattrs<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>, SpoolError> {
        const PREFIX: &str = "SCHILY.xattr.";
        let Some(records) = entry.pax_extensions().map_err(SpoolError::Stream)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for record in records {
            let record = record.map_err(SpoolError::Stream)?;
            if let Ok(name) = record.key()
                && name.starts_with(PREFIX)
            {
                self.take_names(name.len() + record.value_bytes().len())?;
                found.push((name.to_owned(), record.value_bytes().to_vec()));
            }
        }
        Ok(found)
    }
}

/// A field of a header, read; one that nobody has filled in is zero, as with Go.
fn number<N: Default>(header: &Header, field: Range<usize>, read: io::Result<N>) -> Result<N, SpoolError> {
    match read {
        Err(_) if header.as_bytes()[field].iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(N::default()),
        other => other.map_err(SpoolError::Stream),
    }
}

/// A file that has no name, in a folder.
///
/// # Errors
/// The folder takes none.
pub fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?))
}

/// What may still come.
struct Room {
    bytes: u64,
    /// How many names are left out of a path, and what is put before it.
    place: (usize, Vec<u8>),
}

impl Room {
    fn placed(&self, path: &[u8]) -> Option<Vec<u8>> {
        let path = plain(path)?;
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).skip(self.place.0);
        let below = std::iter::once(&self.place.1[..]).filter(|below| !below.is_empty());
        Some(below.chain(names).collect::<Vec<_>>().join(&b'/'))
    }
}

fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let plain = super::select::plain(path)?;
    (plain.len() <= MAX_PATH_BYTES && !plain.contains(&0)).then_some(plain)
}
