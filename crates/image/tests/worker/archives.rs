//! Streams for these tests.

use std::io::{self, Read, Write};

/// An entry of a tar stream with a header of its own making.
pub fn entry(path: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A stream of these entries.
pub fn stream(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Compresses with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Many entries, made while they are read: a million of them do not fit memory comfortably.
pub struct Entries<F> {
    next: u64,
    count: u64,
    make: F,
    left: Vec<u8>,
}

impl<F: FnMut(u64) -> Vec<u8>> Entries<F> {
    /// `make` gives the bytes of the entry with a number.
    pub fn new(count: u64, make: F) -> Self {
        Self { next: 0, count, make, left: Vec::new() }
    }
}

impl<F: FnMut(u64) -> Vec<u8>> Read for Entries<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.next {
                next if next < self.count => self.left = (self.make)(next),
                next if next == self.count => self.left = vec![0; 1024],
                _ => return Ok(0),
            }
            self.next += 1;
        }
        let count = self.left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.left[..count]);
        self.left.drain(..count);
        Ok(count)
    }
}
