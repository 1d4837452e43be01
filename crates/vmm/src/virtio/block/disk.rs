//! What is behind a disk slot: files, one behind the other, shown as one disk. A packed disk is a generated head, layers, and
//! a generated tail; all come as open files.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;

use crate::sys::At;
use crate::virtio::buffers::Buffers;

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;

/// A disk that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A part is empty or no whole number of sectors.
    #[error("a disk's part of {0} bytes is no whole number of sectors")]
    Part(u64),
    /// It is longer than the slot says.
    #[error("a disk is longer than its slot")]
    TooLong,
    /// It is writable, and the slot is not.
    #[error("a writable disk for a read-only slot")]
    Writable,
    /// It has parts, and is to be written.
    #[error("a writable disk is one file")]
    Parts,
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    parts: Vec<Part>,
    bytes: u64,
    read_only: bool,
}

#[derive(Debug)]
struct Part {
    begin: u64,
    bytes: u64,
    file: File,
}

impl Disk {
    /// Puts files together. Shape: each with the bytes that it has on the disk.
    pub(crate) fn new(files: Vec<(File, u64)>, read_only: bool) -> Result<Self, DiskError> {
        if !read_only && files.len() != 1 {
            return Err(DiskError::Parts);
        }
        let mut parts = Vec::with_capacity(files.len());
        let mut begin = 0_u64;
        for (file, bytes) in files {
            if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
                return Err(DiskError::Part(bytes));
            }
            parts.push(Part { begin, bytes, file });
            begin = begin.checked_add(bytes).ok_or(DiskError::TooLong)?;
        }
        Ok(Self { parts, bytes: begin, read_only })
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when it is never written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads `count` bytes from `offset` on. Shape: inside of the disk.
    pub(super) fn read(&self, offset: u64, count: usize, into: &mut Buffers<'_>) -> io::Result<()> {
        for (file, offset, count) in self.pieces(offset, count as u64)? {
            into.fill_from(&mut At::new(file, offset), count).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes `count` bytes at `offset`. Shape: inside of the disk.
    pub(super) fn write(&self, offset: u64, count: usize, from: &mut Buffers<'_>) -> io::Result<()> {
        self.writable()?;
        for (file, offset, count) in self.pieces(offset, count as u64)? {
            from.drain_to(&mut At::new(file, offset), count).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Makes a range read as zeroes, and gives its room back. Shape: inside of the disk.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.writable()?;
        for (file, offset, count) in self.pieces(offset, bytes)? {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, how, offset, count as u64)?;
        }
        Ok(())
    }

    /// Makes what was written last.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.parts.iter().try_for_each(|part| part.file.sync_data())
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)) } else { Ok(()) }
    }

    /// The files that a range lies in, each with place and length.
    fn pieces(&self, offset: u64, bytes: u64) -> io::Result<Vec<(&File, u64, usize)>> {
        let end = offset.checked_add(bytes).filter(|&end| end <= self.bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        let first = self.parts.partition_point(|part| part.begin + part.bytes <= offset);
        let mut pieces = Vec::new();
        for part in self.parts[first..].iter().take_while(|part| part.begin < end) {
            let from = offset.max(part.begin);
            let to = end.min(part.begin + part.bytes);
            let count = usize::try_from(to - from).map_err(io::Error::other)?;
            pieces.push((&part.file, from - part.begin, count));
        }
        Ok(pieces)
    }
}
