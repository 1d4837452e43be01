//! Reading tar streams that somebody sends: ustar, PAX and GNU's long names, within bounds.
//!
//! Why not the `tar` crate's archive: it takes extension headers of any length into memory, and cuts PAX records at line
//! feeds, so that binary attributes such as file capabilities are lost. Its headers serve here.

use std::io::{self, Read};
use std::ops::Range;

use tar::Header;

use super::entry::{Entry, Kind, Time};
use super::error::ArchiveError;
use super::holes::{Holes, Run};

const BLOCK: usize = 512;
/// Longest extension header. Source: Go `archive/tar`, `maxSpecialFileSize`.
const MOST_EXTENSION_BYTES: u64 = 1 << 20;
/// Where a header's checksum is.
const CHECKSUM: Range<usize> = 148..156;
/// And other fields.
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const TIME: Range<usize> = 136..148;

/// A tar stream, read entry by entry; [`Read`] gives the content of the entry that came last.
pub(super) struct TarReader<R: Read> {
    from: R,
    /// Of the current entry's content.
    left: u64,
    /// Between it and the next header.
    padding: u64,
    /// Where they are in a sparse file.
    holes: Option<Holes>,
}

/// PAX records: keys and values.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What extension headers say about the entry behind them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Records,
}

impl<R: Read> TarReader<R> {
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0, holes: None }
    }

    /// The next entry; `None` at the archive's end. What is left of the current one's content is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            match header.entry_type().as_byte() {
                b'x' => extensions.records = parse_records(&self.extension(&header)?)?,
                b'g' => drop(self.extension(&header)?),
                b'L' => extensions.path = Some(until_nul(self.extension(&header)?)),
                b'K' => extensions.link = Some(until_nul(self.extension(&header)?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// True when the current entry has holes, which are read as zeros.
    pub fn is_sparse(&self) -> bool {
        self.holes.is_some()
    }

    /// Reads to the end of the stream: what is behind the archive's end belongs to nobody.
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.from, &mut io::sink()).map(drop).map_err(ArchiveError::Stream)
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.from.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ArchiveError::Format("it ends within a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Stream(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 =
            block.iter().enumerate().map(|(at, byte)| if CHECKSUM.contains(&at) { 32 } else { u32::from(*byte) }).sum();
        match header.cksum() {
            Ok(told) if told == sum => Ok(Some(header)),
            _ => Err(ArchiveError::Format("a header's checksum is wrong")),
        }
    }

    fn begin(&mut self, bytes: u64) {
        self.left = bytes;
        self.padding = bytes.checked_next_multiple_of(BLOCK as u64).unwrap_or(bytes) - bytes;
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let bytes = header.entry_size().map_err(|_| ArchiveError::Format("a size is no number"))?;
        if bytes > MOST_EXTENSION_BYTES {
            return Err(ArchiveError::Format("an extension header is too long"));
        }
        self.begin(bytes);
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(ArchiveError::Stream)?;
        Ok(content)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ArchiveError> {
        // An empty field is zero. Source: Go archive/tar.
        let number = |field, read: io::Result<u64>| match read {
            Err(_) if is_blank(header, field) => Ok(0),
            other => other.map_err(|_| ArchiveError::Format("a header's field is no number")),
        };
        let id = |field, read: io::Result<u64>| {
            let id = number(field, read)?;
            u32::try_from(id).map_err(|_| ArchiveError::Format("an owner is out of range"))
        };
        let mode = number(MODE, header.mode().map(u64::from))?;
        let mut entry = Entry {
            path: extensions.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extensions
                .link
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default(),
            kind: Kind::Regular,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: id(UID, header.uid())?,
            gid: id(GID, header.gid())?,
            modified: Time { seconds: i64::try_from(number(TIME, header.mtime())?).unwrap_or(0), nanoseconds: 0 },
            size: number(SIZE, header.entry_size())?,
            device: (0, 0),
            xattrs: Vec::new(),
        };
        let mut sparse = Declared::default();
        for (key, value) in extensions.records {
            match key.strip_prefix(b"GNU.sparse.") {
                Some(key) => sparse.apply(key, value)?,
                None => apply(&mut entry, &key, value)?,
            }
        }
        entry.kind = kind(header.entry_type().as_byte(), &entry.path)?;
        if matches!(entry.kind, Kind::CharacterDevice | Kind::BlockDevice) {
            let part = |read: io::Result<Option<u32>>| {
                read.map(Option::unwrap_or_default).map_err(|_| ArchiveError::Format("a device is no number"))
            };
            entry.device = (part(header.device_major())?, part(header.device_minor())?);
        }
        if entry.kind != Kind::Regular {
            // Links and folders have no content, whatever their size field says. Source: Go archive/tar.
            entry.size = 0;
        }
        self.begin(entry.size);
        if let Some((path, real_size)) = sparse.checked()? {
            let holes = Holes::read(self, real_size)?;
            holes.check(self.left)?;
            (entry.path, entry.size) = (path, real_size);
            self.holes = Some(holes);
        }
        Ok(entry)
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        self.holes = None;
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.from).take(rest), &mut io::sink()).map_err(ArchiveError::Stream)?;
        (self.left, self.padding) = (0, 0);
        if skipped < rest { Err(ArchiveError::Format("it ends within an entry")) } else { Ok(()) }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(mut holes) = self.holes.take() else { return self.read_stored(buffer) };
        let count = match holes.next(buffer.len()) {
            Run::End => Ok(0),
            Run::Hole(count) => {
                buffer[..count].fill(0);
                Ok(count)
            }
            Run::Data(count) => self.read_stored(&mut buffer[..count]),
        };
        if let Ok(count) = count {
            holes.advance(count);
        }
        self.holes = Some(holes);
        count
    }
}

impl<R: Read> TarReader<R> {
    fn read_stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.from.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a file"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn kind(letter: u8, path: &[u8]) -> Result<Kind, ArchiveError> {
    Ok(match letter {
        // Before POSIX a folder was a file whose name ends in a slash.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharacterDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(ArchiveError::Unsupported("a sparse file in GNU's form")),
        _ => return Err(ArchiveError::Format("an entry of no known type")),
    })
}

fn is_blank(header: &Header, field: Range<usize>) -> bool {
    header.as_bytes()[field].iter().all(|byte| matches!(byte, 0 | b' '))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(length);
    bytes
}

fn apply(entry: &mut Entry, key: &[u8], value: Vec<u8>) -> Result<(), ArchiveError> {
    let text = || std::str::from_utf8(&value).map_err(|_| ArchiveError::Format("a PAX record is no text"));
    let number = || text()?.parse::<u64>().map_err(|_| ArchiveError::Format("a PAX record is no number"));
    let id = || u32::try_from(number()?).map_err(|_| ArchiveError::Format("an owner is out of range"));
    match key {
        // An empty value takes a global header's back, and those do not count here.
        _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {}
        b"path" => entry.path = value,
        b"linkpath" => entry.link = value,
        b"size" => entry.size = number()?,
        b"uid" => entry.uid = id()?,
        b"gid" => entry.gid = id()?,
        b"mtime" => entry.modified = time(text()?)?,
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                entry.xattrs.push((name.to_vec(), value));
            }
        }
    }
    Ok(())
}

/// What PAX records say of a sparse file. Source: GNU tar manual, "PAX Format, Version 1.0".
#[derive(Default)]
struct Declared {
    any: bool,
    major: Vec<u8>,
    minor: Vec<u8>,
    path: Option<Vec<u8>>,
    real_size: Option<u64>,
}

impl Declared {
    fn apply(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), ArchiveError> {
        self.any = true;
        match key {
            b"major" => self.major = value,
            b"minor" => self.minor = value,
            b"name" => self.path = Some(value),
            b"realsize" => {
                let size = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                self.real_size = Some(size.ok_or(ArchiveError::Format("a PAX record is no number"))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Name and length of the file.
    fn checked(self) -> Result<Option<(Vec<u8>, u64)>, ArchiveError> {
        match (self.any, &self.major[..], &self.minor[..], self.path, self.real_size) {
            (false, ..) => Ok(None),
            (true, b"1", b"0", Some(path), Some(size)) => Ok(Some((path, size))),
            _ => Err(ArchiveError::Unsupported("a sparse file in an old form")),
        }
    }
}

/// `[-]SECONDS[.FRACTION]`; what is below a nanosecond is cut off.
fn time(text: &str) -> Result<Time, ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Format("a time is no number");
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let parse = |text: &str| text.parse::<u64>().map_err(|_| BAD);
    let total = sign * (i128::from(parse(whole)?) * 1_000_000_000 + i128::from(parse(&fraction)?));
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| BAD)?;
    Ok(Time { seconds, nanoseconds: u32::try_from(total.rem_euclid(1_000_000_000)).unwrap_or(0) })
}

/// Splits `LENGTH KEY=VALUE\n` records by their lengths, since a value may hold line feeds.
fn parse_records(mut bytes: &[u8]) -> Result<Records, ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Format("a PAX header is malformed");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let digits = bytes.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let length =
            std::str::from_utf8(&bytes[..digits]).ok().and_then(|text| text.parse::<usize>().ok()).ok_or(BAD)?;
        let record = bytes.get(digits + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or(BAD)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::super::writer::TarWriter;
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry {
            path: path.into(),
            link: Vec::new(),
            kind: Kind::Regular,
            mode: 0o4755,
            uid: 5,
            gid: 4_000_000_000,
            modified: Time { seconds: -3, nanoseconds: 250 },
            size: 3,
            device: (0, 0),
            xattrs: vec![(b"security.capability".to_vec(), b"\x01\x00\x00\x02\n=\n\x00".to_vec())],
        }
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new());
        for entry in entries {
            writer.begin(entry).unwrap();
            writer.content(&b"abc"[..usize::try_from(entry.size).unwrap()]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let long = format!("{}/{}", "folder".repeat(30), "\u{e4}".repeat(80));
        let link = Entry { kind: Kind::Symlink, size: 0, link: long.clone().into(), ..entry("link") };
        let device = Entry { kind: Kind::CharacterDevice, size: 0, device: (10, 229), ..entry("dev/fuse") };
        let entries = [entry("plain"), entry(&long), link, device];
        let bytes = written(&entries);
        let mut reader = TarReader::new(&bytes[..]);
        for expected in &entries {
            let read = reader.next_entry().unwrap().unwrap();
            assert_eq!(read, *expected);
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, expected.size);
        }
        assert_eq!(reader.next_entry().unwrap(), None);
        // And by others.
        let mut others = tar::Archive::new(&bytes[..]);
        let paths: Vec<_> = others.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
        assert_eq!(paths, entries.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn empty_fields_are_zeros() {
        let mut header = Header::new_ustar();
        header.set_size(0);
        header.set_path("plain").unwrap();
        header.set_cksum();
        let read = TarReader::new(&header.as_bytes()[..]).next_entry().unwrap().unwrap();
        assert_eq!((read.mode, read.uid, read.gid, read.modified.seconds), (0, 0, 0, 0));
    }

    #[test]
    fn broken_archives_are_refused_and_never_panic() {
        let good = written(&[entry("plain"), entry(&"x".repeat(200))]);
        for cut in (1..good.len() - 1024).step_by(7) {
            let mut reader = TarReader::new(&good[..cut]);
            let mut outcome = Ok(true);
            while matches!(outcome, Ok(true)) {
                outcome = reader.next_entry().map(|entry| entry.is_some());
                if outcome.is_ok() && reader.read_to_end(&mut Vec::new()).is_err() {
                    outcome = Err(ArchiveError::Format(""));
                }
            }
        }
        for at in 0..BLOCK {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            assert!(TarReader::new(&bad[..]).next_entry().is_err(), "byte {at}");
        }
        for records in ["5 a=b\n", "99 a=b\n", "x", "6 ab\n", "0 a=b\n", "7 a=b\nx"] {
            assert!(parse_records(records.as_bytes()).is_err(), "{records:?}");
        }
        assert!(time("1.2.3").is_err() && time("--1").is_err() && time("").is_err());
        assert_eq!(time("-0.5").unwrap(), Time { seconds: -1, nanoseconds: 500_000_000 });
    }
}
