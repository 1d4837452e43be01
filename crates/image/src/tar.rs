//! A reader of tar streams that keeps to bounds.
//!
//! Why not the `tar` crate: it holds extension headers of any size in memory, cuts PAX records at line feeds (so
//! binary attributes such as `security.capability` are lost), and knows no PAX sparse files. Where parsers disagree
//! this one follows Go's `archive/tar`, because that is what made and what reads nearly every image: the last of two
//! equal PAX keys counts, GNU long names beat PAX paths, links and folders have no content whatever their size field
//! says, global PAX headers are skipped.

mod header;
mod pax;
mod sparse;

use std::io::{self, BufReader, Read};

use crate::limits::{MAX_TAR_DESCRIPTION_BYTES, MAX_TAR_EXTENSION_BYTES};
use crate::timestamp::Timestamp;
use header::{BLOCK, RawHeader};
use pax::Records;
use sparse::SparseMap;

/// Bytes read from the source at once.
const READ_BUFFER: usize = 256 << 10;

/// A tar stream that is none.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source failed, was cut off or holds corrupt compressed data.
    #[error("cannot read the tar stream")]
    Read(#[source] io::Error),
    /// A header breaks the format.
    #[error("invalid tar header: {0}")]
    Header(&'static str),
    /// An extension header is longer than [`MAX_TAR_EXTENSION_BYTES`].
    #[error("tar extension header of {bytes} bytes is over the limit of {MAX_TAR_EXTENSION_BYTES}")]
    ExtensionTooLarge {
        /// Its length.
        bytes: u64,
    },
    /// Behind the end of the archive something other than zeros follows.
    #[error("data behind the end of the tar archive")]
    TrailingData,
    /// A header breaks the format, in the words of the process that read it.
    #[error("invalid tar header: {0}")]
    Reported(String),
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Regular,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry of a tar stream; its content is read from the stream before the next entry.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As stored: may be absolute, have `..`, end in a slash.
    pub path: Vec<u8>,
    /// Target of a link, as stored.
    pub link: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u16,
    /// As stored; may be negative.
    pub uid: i64,
    /// As stored; may be negative.
    pub gid: i64,
    pub modified: Timestamp,
    /// Major and minor number of a device.
    pub device: (i64, i64),
    /// Length of the content, holes included; 0 for all but regular files.
    pub size: u64,
    /// Names with prefix, and values; the last of equal names counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream, read entry by entry; [`Read`] gives the content of the entry that came last.
pub(crate) struct TarStream<R> {
    source: BufReader<R>,
    /// Stored bytes of the current entry's content not yet read.
    stored: u64,
    /// Bytes after the content up to the next header.
    padding: u64,
    /// Where the content lies in the file; `None` for content without holes.
    sparse: Option<SparseMap>,
    ended: bool,
    recorded: Option<Recorded>,
}

/// What passed since it was last taken: what is no content of an entry, and where content belongs.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// Headers, extensions and padding, up to the content.
    pub literal: Vec<u8>,
    /// Offsets and lengths in the entry's content of what is stored; the holes of a sparse file lie between.
    pub runs: Vec<(u64, u64)>,
    /// Where reading the content is.
    offset: u64,
    in_content: bool,
}

impl Recorded {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        if self.literal.len() + bytes.len() > MAX_TAR_DESCRIPTION_BYTES {
            return Err(TarError::Header("the headers of one entry are too long"));
        }
        self.literal.extend_from_slice(bytes);
        Ok(())
    }

    fn stored(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.in_content {
            return self.literal(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        }
        match self.runs.last_mut() {
            Some((offset, length)) if *offset + *length == self.offset => *length += bytes.len() as u64,
            _ => self.runs.push((self.offset, bytes.len() as u64)),
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// The map of a sparse file, and its true name where the entry has a made-up one.
type SparseFile = (SparseMap, Option<Vec<u8>>);

/// What extension headers say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Option<Records>,
}

impl<R: Read> TarStream<R> {
    pub fn new(source: R) -> Self {
        Self {
            source: BufReader::with_capacity(READ_BUFFER, source),
            stored: 0,
            padding: 0,
            sparse: None,
            ended: false,
            recorded: None,
        }
    }

    /// As [`TarStream::new`]; what passes can be taken after every entry, see [`TarStream::take_recorded`].
    pub fn recording(source: R) -> Self {
        Self { recorded: Some(Recorded::default()), ..Self::new(source) }
    }

    /// What passed since this was last called: after [`TarStream::next_entry`] the literal bytes up to the entry's content,
    /// after the content was read its runs.
    pub fn take_recorded(&mut self) -> Recorded {
        let in_content = self.recorded.as_ref().is_some_and(|recorded| recorded.in_content);
        self.recorded.replace(Recorded { in_content, ..Recorded::default() }).unwrap_or_default()
    }

    /// The next entry, `None` at the end. What is left of the current entry's content is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.set_in_content(false);
        let entry = self.read_entry();
        self.set_in_content(true);
        entry
    }

    fn set_in_content(&mut self, in_content: bool) {
        if let Some(recorded) = &mut self.recorded {
            recorded.in_content = in_content;
        }
    }

    fn read_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.next_header()? else {
                let described = extensions.long_path.is_some() || extensions.records.is_some();
                return if described { Err(TarError::Header("an extension describes no entry")) } else { Ok(None) };
            };
            match header.kind() {
                b'x' => extensions.records = Some(Records::parse(&self.extension(&header)?)?),
                b'g' => drop(self.extension(&header)?),
                b'L' => extensions.long_path = Some(header::until_nul(&self.extension(&header)?).to_vec()),
                b'K' => extensions.long_link = Some(header::until_nul(&self.extension(&header)?).to_vec()),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads to the end of the stream, so that whoever hashes it has seen all of it; gives the number of zeros there, too.
    pub fn finish(mut self) -> Result<(R, u64), TarError> {
        debug_assert!(self.ended, "finish follows the last entry");
        let mut block = [0_u8; 4096];
        let mut zeros = 0;
        loop {
            match self.source.read(&mut block).map_err(TarError::Read)? {
                0 => return Ok((self.source.into_inner(), zeros)),
                count if block[..count] == ZEROS[..count] => zeros += count as u64,
                _ => return Err(TarError::TrailingData),
            }
        }
    }

    fn next_header(&mut self) -> Result<Option<RawHeader>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if block == ZEROS[..BLOCK] {
            self.ended = true;
            return match self.read_block(&mut block)? {
                true if block != ZEROS[..BLOCK] => Err(TarError::Header("a single block of zeros")),
                _ => Ok(None),
            };
        }
        RawHeader::new(block).map(Some)
    }

    /// Fills a block; false at the end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.literal(block)?;
        }
        Ok(true)
    }

    fn extension(&mut self, header: &RawHeader) -> Result<Vec<u8>, TarError> {
        let bytes = header.size()?;
        if bytes > MAX_TAR_EXTENSION_BYTES {
            return Err(TarError::ExtensionTooLarge { bytes });
        }
        self.begin_content(bytes);
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(TarError::Read)?;
        Ok(content)
    }

    fn begin_content(&mut self, stored: u64) {
        self.stored = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        self.sparse = None;
    }

    fn entry(&mut self, header: &RawHeader, extensions: Extensions) -> Result<Entry, TarError> {
        let records = extensions.records.unwrap_or_default();
        let mut path = match records.get(b"path") {
            Some(path) => path.to_vec(),
            None => header.path(),
        };
        let mut link = records.get(b"linkpath").map_or_else(|| header.link().to_vec(), <[u8]>::to_vec);
        path = extensions.long_path.unwrap_or(path);
        link = extensions.long_link.unwrap_or(link);
        let kind = entry_kind(header.kind(), &path)?;
        let stored = if kind == EntryKind::Regular { records.size()?.map_or_else(|| header.size(), Ok)? } else { 0 };
        self.begin_content(stored);
        let mut size = stored;
        if kind == EntryKind::Regular
            && let Some((map, real_path)) = self.sparse_map(header, &records)?
        {
            size = map.real_size();
            path = real_path.unwrap_or(path);
            self.sparse = Some(map);
        }
        Ok(Entry {
            path,
            link,
            kind,
            mode: header.mode()?,
            uid: records.number(b"uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: records.number(b"gid")?.map_or_else(|| header.gid(), Ok)?,
            modified: records.modified()?.map_or_else(|| header.modified(), Ok)?,
            device: header.device()?,
            size,
            xattrs: records.into_xattrs(),
        })
    }

    /// The map, if the entry is a sparse file.
    fn sparse_map(&mut self, header: &RawHeader, records: &Records) -> Result<Option<SparseFile>, TarError> {
        if header.kind() == b'S' {
            let (mut segments, mut extended) = header.sparse_segments()?;
            let mut block = [0; BLOCK];
            while extended {
                if !self.read_block(&mut block)? {
                    return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                extended = header::extend_sparse_segments(&block, &mut segments)?;
            }
            return SparseMap::new(segments, header.sparse_real_size()?, self.stored).map(|map| Some((map, None)));
        }
        let Some(declared) = sparse::declared(records)? else { return Ok(None) };
        let segments = match declared.segments {
            Some(segments) => segments,
            None => sparse::read_embedded(self)?,
        };
        SparseMap::new(segments, declared.real_size, self.stored).map(|map| Some((map, declared.path)))
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let rest = self.stored.checked_add(self.padding).ok_or(TarError::Header("size out of range"))?;
        let mut rest_of_source = (&mut self.source).take(rest);
        let skipped = match &mut self.recorded {
            Some(recorded) => {
                let mut bytes = Vec::new();
                // Whoever records reads the content, so that only padding is left.
                let limit = MAX_TAR_DESCRIPTION_BYTES as u64;
                rest_of_source.by_ref().take(limit).read_to_end(&mut bytes).map_err(TarError::Read)?;
                recorded.literal(&bytes)?;
                bytes.len() as u64
            }
            None => io::copy(&mut rest_of_source, &mut io::sink()).map_err(TarError::Read)?,
        };
        (self.stored, self.padding, self.sparse) = (0, 0, None);
        if skipped < rest { Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }

    /// Reads stored bytes of the current entry.
    fn read_stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.stored).map_or(buffer.len(), |stored| stored.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.stored -= count as u64;
        if let Some(recorded) = &mut self.recorded {
            recorded.stored(&buffer[..count])?;
        }
        Ok(count)
    }
}

impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(mut map) = self.sparse.take() else { return self.read_stored(buffer) };
        let result = match map.next_run(buffer.len()) {
            sparse::Run::End => Ok(0),
            sparse::Run::Hole(count) => {
                buffer[..count].fill(0);
                if let Some(recorded) = &mut self.recorded {
                    recorded.offset += count as u64;
                }
                Ok(count)
            }
            sparse::Run::Data(count) => self.read_stored(&mut buffer[..count]),
        };
        if let Ok(count) = result {
            map.advance(count);
        }
        self.sparse = Some(map);
        result
    }
}

const ZEROS: [u8; 4096] = [0; 4096];

fn entry_kind(kind: u8, path: &[u8]) -> Result<EntryKind, TarError> {
    Ok(match kind {
        // Before POSIX a folder was a file whose name ends in a slash.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::Regular,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharacterDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => return Err(TarError::Header("unknown type of entry")),
    })
}

#[cfg(test)]
mod tests;
