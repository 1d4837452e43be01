//! How a layer's tar stream is made again from its EROFS file, byte for byte.
//!
//! A push and a save need the very stream that the layer's diffID is the digest of, and the file system alone does not tell
//! it: header formats, the order of entries, padding and entries that replaced each other are gone. So a conversion writes
//! down, in blocks of the same file that no inode names, all that is not content of files, and where that content lies
//! (what tar-split does beside Docker's layer folders).
//!
//! ```text
//! byte 0 of the file   magic, block and length of the last chunk     (EROFS leaves the first 1024 bytes alone)
//! a chunk              block and length of the one before, zstd bytes
//! all zstd bytes       a sequence of steps: number (length << 2 | kind), then
//!                      0 literal: the bytes · 1 copy: file position · 2 zeros: nothing more
//! ```
//!
//! Numbers of steps are LEB128. Being part of the layer's file, a recipe is committed, kept and freed with it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use crate::erofs::{Place, WriteError, Writer};

const MAGIC: &[u8; 8] = b"BHTAR\0\0\x01";
const HEAD: usize = 16;
const BLOCK_BYTES: u64 = 4096;
/// Compressed bytes collected in memory before they are written.
const CHUNK: usize = 256 << 10;
/// In front of a chunk's bytes.
const CHUNK_HEAD: usize = 8;
const LEVEL: i32 = 3;

const LITERAL: u64 = 0;
const COPY: u64 = 1;
const ZEROS: u64 = 2;

/// Writes a recipe between the files of a layer.
pub(crate) struct RecipeWriter {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    /// Block and length of the chunk written last.
    last: (u32, u32),
}

impl RecipeWriter {
    pub fn new() -> io::Result<Self> {
        Ok(Self { encoder: zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?, last: (0, 0) })
    }

    /// Bytes of the stream that are nowhere else.
    pub fn literal(&mut self, bytes: &[u8], writer: &mut Writer) -> Result<(), WriteError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.step(LITERAL, bytes.len() as u64, None)?;
        self.encoder.write_all(bytes)?;
        self.drain(writer)
    }

    /// Content that lies at `place`: `runs` of it (offset and length) are in the stream, one after the other.
    pub fn content(&mut self, runs: &[(u64, u64)], place: &Place, writer: &mut Writer) -> Result<(), WriteError> {
        for (offset, length) in runs {
            let in_blocks = place.in_blocks.saturating_sub(*offset).min(*length);
            if in_blocks > 0 {
                self.step(COPY, in_blocks, Some(place.blocks_at + offset))?;
            }
            if in_blocks < *length {
                let offset_in_tail = offset + in_blocks - place.in_blocks;
                self.step(COPY, length - in_blocks, Some(place.tail_at + offset_in_tail))?;
            }
        }
        self.drain(writer)
    }

    /// Ends the recipe with the zeros at the end of the stream.
    pub fn finish(&mut self, zeros: u64, writer: &mut Writer) -> Result<(), WriteError> {
        if zeros > 0 {
            self.step(ZEROS, zeros, None)?;
        }
        self.encoder.do_finish()?;
        self.write_chunk(writer)?;
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&self.last.0.to_le_bytes());
        head[12..].copy_from_slice(&self.last.1.to_le_bytes());
        writer.set_head(&head)
    }

    fn step(&mut self, kind: u64, length: u64, position: Option<u64>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(20);
        for number in [Some(length << 2 | kind), position].into_iter().flatten() {
            push_number(&mut bytes, number);
        }
        self.encoder.write_all(&bytes)
    }

    fn drain(&mut self, writer: &mut Writer) -> Result<(), WriteError> {
        if self.encoder.get_ref().len() >= CHUNK { self.write_chunk(writer) } else { Ok(()) }
    }

    fn write_chunk(&mut self, writer: &mut Writer) -> Result<(), WriteError> {
        let bytes = std::mem::take(self.encoder.get_mut());
        let head = [self.last.0.to_le_bytes(), self.last.1.to_le_bytes()].concat();
        let length = u32::try_from(bytes.len()).map_err(|_| WriteError::TooLarge)?;
        let size = (CHUNK_HEAD + bytes.len()) as u64;
        let place = writer.unnamed(size, &mut head.chain(&bytes[..]))?;
        let block = u32::try_from(place.blocks_at / BLOCK_BYTES).map_err(|_| WriteError::TooLarge)?;
        self.last = (block, length);
        Ok(())
    }
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// The tar stream that a layer's recipe makes, unverified. The file counts as hostile: it was written by the worker that
/// had read a stranger's archive.
pub(crate) struct RecipeReader {
    file: File,
    steps: BufReader<zstd::Decoder<'static, BufReader<Chunks>>>,
    current: Step,
}

/// What is left of a step.
enum Step {
    Literal(u64),
    Copy { position: u64, length: u64 },
    Zeros(u64),
    End,
}

impl RecipeReader {
    /// `file` is a layer's; a fault of kind `InvalidData` says that it has no recipe.
    pub fn open(file: File) -> io::Result<Self> {
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        if &head[..8] != MAGIC {
            return Err(damaged("the layer has no recipe of its tar stream"));
        }
        let chunks = Chunks::find(file.try_clone()?, read_pair(&head[8..]))?;
        let mut decoder = zstd::Decoder::new(chunks)?;
        decoder.window_log_max(crate::limits::MAX_ZSTD_WINDOW_LOG)?;
        Ok(Self { file, steps: BufReader::new(decoder), current: Step::Literal(0) })
    }

    /// Length of the whole stream, found without reading what is copied. When: nothing was read yet.
    pub fn stream_bytes(mut self) -> io::Result<u64> {
        let mut bytes = 0_u64;
        loop {
            self.next_step()?;
            let length = match self.current {
                Step::End => return Ok(bytes),
                Step::Literal(length) => {
                    if io::copy(&mut self.steps.by_ref().take(length), &mut io::sink())? < length {
                        return Err(cut_off());
                    }
                    length
                }
                Step::Copy { length, .. } | Step::Zeros(length) => length,
            };
            bytes = bytes.checked_add(length).ok_or_else(cut_off)?;
        }
    }

    fn next_step(&mut self) -> io::Result<()> {
        let Some(number) = read_number(&mut self.steps)? else {
            self.current = Step::End;
            return Ok(());
        };
        let length = number >> 2;
        self.current = match number & 3 {
            LITERAL => Step::Literal(length),
            COPY => {
                let position = read_number(&mut self.steps)?.ok_or_else(cut_off)?;
                Step::Copy { position, length }
            }
            ZEROS => Step::Zeros(length),
            _ => return Err(damaged("the recipe of the layer's tar stream is damaged")),
        };
        Ok(())
    }
}

impl Read for RecipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.current {
                Step::Literal(0) | Step::Zeros(0) | Step::Copy { length: 0, .. } => self.next_step()?,
                _ if buffer.is_empty() => return Ok(0),
                Step::End => return Ok(0),
                Step::Literal(length) => {
                    let wanted = at_most(*length, buffer.len());
                    let count = self.steps.read(&mut buffer[..wanted])?;
                    if count == 0 {
                        return Err(cut_off());
                    }
                    *length -= count as u64;
                    return Ok(count);
                }
                Step::Copy { position, length } => {
                    let wanted = at_most(*length, buffer.len());
                    let count = self.file.read_at(&mut buffer[..wanted], *position)?;
                    if count == 0 {
                        return Err(cut_off());
                    }
                    *position += count as u64;
                    *length -= count as u64;
                    return Ok(count);
                }
                Step::Zeros(length) => {
                    let count = at_most(*length, buffer.len());
                    buffer[..count].fill(0);
                    *length -= count as u64;
                    return Ok(count);
                }
            }
        }
    }
}

/// The compressed bytes, chunk after chunk.
struct Chunks {
    file: File,
    /// Position and length of those that were not begun, the next one last.
    ahead: Vec<(u64, u64)>,
    position: u64,
    left: u64,
}

impl Chunks {
    /// Follows the chunks from the last one to the first. Each lies before the one that names it, so this ends.
    fn find(file: File, last: (u32, u32)) -> io::Result<Self> {
        let mut ahead = Vec::new();
        let (mut block, mut length) = last;
        while block > 0 {
            let position = u64::from(block) * BLOCK_BYTES;
            ahead.push((position + CHUNK_HEAD as u64, u64::from(length)));
            let mut head = [0; CHUNK_HEAD];
            file.read_exact_at(&mut head, position)?;
            let before = read_pair(&head);
            if before.0 >= block {
                return Err(damaged("the recipe of the layer's tar stream is damaged"));
            }
            (block, length) = before;
        }
        Ok(Self { file, ahead, position: 0, left: 0 })
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let Some((position, length)) = self.ahead.pop() else { return Ok(0) };
            (self.position, self.left) = (position, length);
        }
        let wanted = at_most(self.left, buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 && wanted > 0 {
            return Err(cut_off());
        }
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn read_pair(bytes: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (number(0), number(4))
}

/// A number, or nothing at the end of the steps.
fn read_number(steps: &mut impl Read) -> io::Result<Option<u64>> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        if steps.read(&mut byte)? == 0 {
            return if shift == 0 { Ok(None) } else { Err(cut_off()) };
        }
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(number));
        }
    }
    Err(damaged("the recipe of the layer's tar stream is damaged"))
}

fn at_most(left: u64, room: usize) -> usize {
    usize::try_from(left).map_or(room, |left| left.min(room))
}

fn damaged(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn cut_off() -> io::Error {
    damaged("the recipe of the layer's tar stream is cut off")
}
