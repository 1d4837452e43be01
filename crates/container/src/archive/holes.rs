//! Where the holes of a sparse file in a tar stream are.
//!
//! Source: GNU tar manual, "PAX Format, Version 1.0": the file's content begins with a map, decimal numbers in lines, padded
//! to whole blocks: how many pieces there are, then offset and length of each.

use std::io::Read;

use super::error::ArchiveError;

const BLOCK: usize = 512;
/// Pieces of one file.
const MOST_PIECES: u64 = 1 << 20;
const MALFORMED: ArchiveError = ArchiveError::Format("the map of a sparse file is malformed");

/// A sparse file, being read.
pub(super) struct Holes {
    /// Offset and length, in order.
    pieces: Vec<(u64, u64)>,
    /// The piece that is read, or that comes next.
    at: usize,
    position: u64,
    size: u64,
}

/// What comes next.
pub(super) enum Run {
    /// Nothing.
    End,
    /// So many bytes of a hole.
    Hole(usize),
    /// So many bytes of the stream.
    Data(usize),
}

impl Holes {
    /// Reads the map from the beginning of a file's content.
    pub fn read(content: &mut impl Read, size: u64) -> Result<Self, ArchiveError> {
        let mut map = Map { content, block: [0; BLOCK], at: BLOCK };
        let count = map.number()?;
        if count > MOST_PIECES {
            return Err(MALFORMED);
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((map.number()?, map.number()?));
        }
        Ok(Self { pieces, at: 0, position: 0, size })
    }

    /// Checks that the pieces are in order, within the file, and what is stored. Shape: bytes of the stream that are left.
    pub fn check(&self, stored: u64) -> Result<(), ArchiveError> {
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in &self.pieces {
            let next =
                offset.checked_add(*length).filter(|next| *offset >= end && *next <= self.size).ok_or(MALFORMED)?;
            sum += length;
            end = next;
        }
        if sum == stored { Ok(()) } else { Err(MALFORMED) }
    }

    /// What the next bytes are, at most so many.
    pub fn next(&mut self, most: usize) -> Run {
        let bounded = |bytes: u64| usize::try_from(bytes).map_or(most, |bytes| bytes.min(most));
        while let Some((offset, length)) = self.pieces.get(self.at) {
            if self.position < *offset {
                return Run::Hole(bounded(offset - self.position));
            }
            if self.position < offset + length {
                return Run::Data(bounded(offset + length - self.position));
            }
            self.at += 1;
        }
        if self.position < self.size { Run::Hole(bounded(self.size - self.position)) } else { Run::End }
    }

    /// Notes that so many bytes were read.
    pub fn advance(&mut self, count: usize) {
        self.position += count as u64;
    }
}

/// The numbers of a map.
struct Map<'a, R: Read> {
    content: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Map<'_, R> {
    fn number(&mut self) -> Result<u64, ArchiveError> {
        let mut number = 0_u64;
        let mut digits = 0;
        loop {
            if self.at == BLOCK {
                self.content.read_exact(&mut self.block).map_err(ArchiveError::Stream)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' if digits > 0 => return Ok(number),
                b'0'..=b'9' if digits < 19 => number = number * 10 + u64::from(byte - b'0'),
                _ => return Err(MALFORMED),
            }
            digits += 1;
        }
    }
}
