//! Files with holes, in GNU's four notations (old, and PAX 0.0, 0.1, 1.0). Source: GNU tar manual, "Storing Sparse Files".

use std::io::Read;

use super::header::{BLOCK, Segment};
use super::pax::{Records, decimal};
use super::{TarError, TarStream};

/// Segments of one file.
const MAX_SEGMENTS: usize = 65_536;
const MALFORMED: TarError = TarError::Header("malformed map of a sparse file");

/// Where the stored content of a file lies in it. Segments are in order and do not overlap.
#[derive(Debug)]
pub(super) struct SparseMap {
    segments: Vec<Segment>,
    real_size: u64,
    position: u64,
    next: usize,
}

/// What comes next in a sparse file, at most as long as asked for.
pub(super) enum Run {
    Hole(usize),
    Data(usize),
    End,
}

impl SparseMap {
    /// Checks that the segments are in order, inside the file, and as long as what is stored.
    pub fn new(segments: Vec<Segment>, real_size: u64, stored: u64) -> Result<Self, TarError> {
        check_count(segments.len())?;
        let (mut end, mut total) = (0_u64, 0_u64);
        for (offset, length) in &segments {
            if *offset < end {
                return Err(MALFORMED);
            }
            end = offset.checked_add(*length).ok_or(MALFORMED)?;
            total = total.checked_add(*length).ok_or(MALFORMED)?;
        }
        match end <= real_size && total == stored {
            true => Ok(Self { segments, real_size, position: 0, next: 0 }),
            false => Err(MALFORMED),
        }
    }

    pub fn real_size(&self) -> u64 {
        self.real_size
    }

    pub fn next_run(&mut self, wanted: usize) -> Run {
        while self.segments.get(self.next).is_some_and(|(offset, length)| offset + length <= self.position) {
            self.next += 1;
        }
        let (end, is_data) = match self.segments.get(self.next) {
            Some((offset, length)) if *offset <= self.position => (offset + length, true),
            Some((offset, _)) => (*offset, false),
            None => (self.real_size, false),
        };
        let count = usize::try_from(end - self.position).map_or(wanted, |count| count.min(wanted));
        match (count, is_data) {
            (0, _) => Run::End,
            (count, true) => Run::Data(count),
            (count, false) => Run::Hole(count),
        }
    }

    pub fn advance(&mut self, count: usize) {
        self.position += count as u64;
    }
}

/// A sparse file as PAX records declare it.
pub(super) struct Declared {
    pub real_size: u64,
    pub path: Option<Vec<u8>>,
    /// `None`: the map stands before the content (format 1.0).
    pub segments: Option<Vec<Segment>>,
}

pub(super) fn declared(records: &Records) -> Result<Option<Declared>, TarError> {
    let path = records.get(b"GNU.sparse.name").map(<[u8]>::to_vec);
    let segments = match (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")) {
        (Some(b"1"), Some(b"0")) => None,
        (None, None) | (Some(b"0"), Some(b"0" | b"1")) => match records.get(b"GNU.sparse.map") {
            Some(map) => Some(pairs(map.split(|b| *b == b','))?),
            None if records.get(b"GNU.sparse.size").is_some() => Some(records.repeated_segments().to_vec()),
            None => return Ok(None),
        },
        _ => return Err(TarError::Header("unknown version of the sparse format")),
    };
    let size = records.get(b"GNU.sparse.realsize").or_else(|| records.get(b"GNU.sparse.size")).ok_or(MALFORMED)?;
    Ok(Some(Declared { real_size: decimal(size)?, path, segments }))
}

/// Reads the map that format 1.0 stores in front of the content: lines with a count and then offsets and lengths, padded
/// to a block.
pub(super) fn read_embedded<R: Read>(stream: &mut TarStream<R>) -> Result<Vec<Segment>, TarError> {
    let mut text = Vec::new();
    let mut block = [0; BLOCK];
    let mut wanted_lines = None;
    loop {
        stream.read_exact(&mut block).map_err(TarError::Read)?;
        text.extend_from_slice(&block);
        let lines = text.iter().filter(|b| **b == b'\n').count();
        if wanted_lines.is_none() && lines > 0 {
            let first = text.split(|b| *b == b'\n').next().unwrap_or_default();
            let count = usize::try_from(decimal(first)?).map_err(|_| MALFORMED)?;
            check_count(count)?;
            wanted_lines = Some(1 + 2 * count);
        }
        match wanted_lines {
            Some(wanted) if lines >= wanted => {
                return pairs(text.split(|b| *b == b'\n').skip(1).take(wanted - 1));
            }
            None if text.len() > BLOCK => return Err(MALFORMED),
            // A number has at most 20 digits and a line feed.
            Some(wanted) if text.len() > wanted * 21 + BLOCK => return Err(MALFORMED),
            _ => {}
        }
    }
}

pub(super) fn check_count(segments: usize) -> Result<(), TarError> {
    if segments > MAX_SEGMENTS { Err(TarError::Header("too many segments in a sparse file")) } else { Ok(()) }
}

fn pairs<'a>(numbers: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Segment>, TarError> {
    let numbers: Vec<u64> = numbers.filter(|text| !text.is_empty()).map(decimal).collect::<Result<_, _>>()?;
    if !numbers.len().is_multiple_of(2) {
        return Err(MALFORMED);
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
