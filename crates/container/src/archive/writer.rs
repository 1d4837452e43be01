//! Writing tar streams: ustar headers, PAX records for what does not fit into them.
//!
//! Source: POSIX.1-2017, pax; GNU tar manual, "PAX Format, Version 1.0"; star(1), `SCHILY.xattr`.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::entry::{Entry, Kind, Time};

const BLOCK: usize = 512;
/// Longest name in an ustar header without its prefix.
const NAME_BYTES: usize = 100;
/// Largest numbers in seven and eleven octal digits.
const MOST_ID: u32 = 0o777_7777;
const MOST_SIZE: u64 = 0o777_7777_7777;

/// A tar stream that is written entry by entry.
pub(super) struct TarWriter<W: Write> {
    to: W,
    /// Bytes that are missing up to the next header.
    padding: usize,
}

/// Where the data of a file with holes lies: offset and length.
pub(super) type Segments = Vec<(u64, u64)>;

impl<W: Write> TarWriter<W> {
    pub fn new(to: W) -> Self {
        Self { to, padding: 0 }
    }

    /// Begins an entry; of a regular file its content must follow, all of it.
    pub fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let mut records = Records::default();
        records.add_common(entry, entry.size);
        if entry.path.len() > NAME_BYTES {
            records.add("path", &entry.path);
        }
        self.header(entry, &entry.path, entry.size, &records)
    }

    /// Begins a regular file of which only the segments' bytes follow.
    pub fn begin_sparse(&mut self, entry: &Entry, segments: &Segments) -> io::Result<()> {
        let mut map = format!("{}\n", segments.len());
        let mut stored = 0;
        for (offset, length) in segments {
            map.push_str(&format!("{offset}\n{length}\n"));
            stored += length;
        }
        map.extend(std::iter::repeat_n('\0', padding_of(map.len() as u64)));
        let mut records = Records::default();
        records.add_common(entry, map.len() as u64 + stored);
        records.add("GNU.sparse.major", b"1");
        records.add("GNU.sparse.minor", b"0");
        records.add("GNU.sparse.name", &entry.path);
        records.add("GNU.sparse.realsize", entry.size.to_string().as_bytes());
        self.header(entry, b"GNUSparseFile.0/file", map.len() as u64 + stored, &records)?;
        self.to.write_all(map.as_bytes())
    }

    /// Writes content.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    /// Writes the end of the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.to.write_all(&[0; 2 * BLOCK])?;
        Ok(self.to)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.to.write_all(&[0; BLOCK][..padding])
    }

    fn header(&mut self, entry: &Entry, name: &[u8], stored: u64, records: &Records) -> io::Result<()> {
        self.pad()?;
        if !records.0.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            put(&mut header, b"PaxHeaders.0/entry", 0);
            header.set_mode(0o644);
            header.set_size(records.0.len() as u64);
            header.set_cksum();
            self.to.write_all(header.as_bytes())?;
            self.to.write_all(&records.0)?;
            self.padding = padding_of(records.0.len() as u64);
            self.pad()?;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(match entry.kind {
            Kind::Regular => EntryType::Regular,
            Kind::HardLink => EntryType::Link,
            Kind::Symlink => EntryType::Symlink,
            Kind::CharacterDevice => EntryType::Char,
            Kind::BlockDevice => EntryType::Block,
            Kind::Directory => EntryType::Directory,
            Kind::Fifo => EntryType::Fifo,
        });
        put(&mut header, name, 0);
        put(&mut header, &entry.link, LINK_AT);
        header.set_mode(entry.mode);
        header.set_uid(u64::from(entry.uid.min(MOST_ID)));
        header.set_gid(u64::from(entry.gid.min(MOST_ID)));
        header.set_size(stored.min(MOST_SIZE));
        header.set_mtime(u64::try_from(entry.modified.seconds).unwrap_or(0).min(MOST_SIZE));
        header.set_device_major(entry.device.0.min(MOST_ID))?;
        header.set_device_minor(entry.device.1.min(MOST_ID))?;
        header.set_cksum();
        self.to.write_all(header.as_bytes())?;
        self.padding = padding_of(stored);
        Ok(())
    }
}

/// Where a link's target is in a header.
const LINK_AT: usize = 157;

/// Puts as much of a name into a header as it takes; the whole of a longer one is in a record.
fn put(header: &mut Header, name: &[u8], at: usize) {
    let count = name.len().min(NAME_BYTES);
    header.as_mut_bytes()[at..at + count].copy_from_slice(&name[..count]);
}

fn padding_of(length: u64) -> usize {
    let padding = length.next_multiple_of(BLOCK as u64) - length;
    usize::try_from(padding).unwrap_or(0)
}

/// PAX records, encoded.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add_common(&mut self, entry: &Entry, stored: u64) {
        if entry.link.len() > NAME_BYTES {
            self.add("linkpath", &entry.link);
        }
        if entry.uid > MOST_ID {
            self.add("uid", entry.uid.to_string().as_bytes());
        }
        if entry.gid > MOST_ID {
            self.add("gid", entry.gid.to_string().as_bytes());
        }
        if stored > MOST_SIZE {
            self.add("size", stored.to_string().as_bytes());
        }
        if entry.modified.nanoseconds != 0 || entry.modified.seconds < 0 {
            self.add("mtime", decimal(entry.modified).as_bytes());
        }
        for (name, value) in &entry.xattrs {
            let mut key = b"SCHILY.xattr.".to_vec();
            key.extend_from_slice(name);
            self.add_bytes(&key, value);
        }
    }

    fn add(&mut self, key: &str, value: &[u8]) {
        self.add_bytes(key.as_bytes(), value);
    }

    /// `LENGTH KEY=VALUE\n`, the length being that of all, its own digits included.
    fn add_bytes(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// A time as PAX has it: a fraction counts away from zero before the epoch too.
fn decimal(time: Time) -> String {
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        for length in 0..2000 {
            let mut records = Records::default();
            records.add("k", &vec![b'v'; length]);
            let digits = records.0.iter().position(|byte| *byte == b' ').unwrap();
            let told: usize = std::str::from_utf8(&records.0[..digits]).unwrap().parse().unwrap();
            assert_eq!(told, records.0.len());
        }
    }

    #[test]
    fn times_before_the_epoch_are_told_right() {
        assert_eq!(decimal(Time { seconds: 5, nanoseconds: 7 }), "5.000000007");
        assert_eq!(decimal(Time { seconds: -1, nanoseconds: 500_000_000 }), "-0.500000000");
        assert_eq!(decimal(Time { seconds: -2, nanoseconds: 0 }), "-2.000000000");
    }
}
