//! The file that a file system is written into: mostly in order, sometimes back.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, BLOCK_BYTES};

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;
/// Runs of zeros at least this long are left as holes.
const HOLE: usize = 64 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// A fault while content is copied, on either side.
pub(super) enum CopyError {
    Input(io::Error),
    Output(io::Error),
}

/// A file, a buffer for what comes in order, and zeros wherever nothing was written.
pub(super) struct Output {
    file: File,
    /// File position of the buffer's first byte.
    start: u64,
    buffer: Box<[u8]>,
    used: usize,
}

impl Output {
    /// `file` is empty.
    pub fn new(file: File) -> Self {
        Self { file, start: 0, buffer: vec![0; BUFFER].into_boxed_slice(), used: 0 }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.start + self.used as u64
    }

    /// Appends zeros up to the next multiple of a block.
    pub fn pad_to_block(&mut self) -> io::Result<()> {
        self.push_zeros(self.position().next_multiple_of(BLOCK_BYTES) - self.position())
    }

    pub fn push_zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let room = self.room()?;
            let now = usize::try_from(count).map_or(room.len(), |count| count.min(room.len()));
            room[..now].fill(0);
            self.used += now;
            count -= now as u64;
        }
        Ok(())
    }

    /// Appends exactly `count` bytes of `input`.
    pub fn copy_from(&mut self, input: &mut dyn Read, mut count: u64) -> Result<(), CopyError> {
        while count > 0 {
            let room = self.room().map_err(CopyError::Output)?;
            let now = usize::try_from(count).map_or(room.len(), |count| count.min(room.len()));
            match input.read(&mut room[..now]) {
                Ok(0) => return Err(CopyError::Input(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => {
                    self.used += read;
                    count -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Input(error)),
            }
        }
        Ok(())
    }

    /// Writes over what was appended before.
    pub fn overwrite(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let before = usize::try_from(self.start.saturating_sub(position)).map_or(bytes.len(), |n| n.min(bytes.len()));
        let (written, buffered) = bytes.split_at(before);
        if !written.is_empty() {
            self.file.write_all_at(written, position)?;
        }
        if !buffered.is_empty() {
            let at = usize::try_from(position + before as u64 - self.start).expect("inside the buffer");
            self.buffer[at..at + buffered.len()].copy_from_slice(buffered);
        }
        Ok(())
    }

    /// Reads the first block, and lets it be changed and written back.
    pub fn with_first_block(&mut self, change: impl FnOnce(&mut [u8; BLOCK])) -> io::Result<()> {
        self.flush()?;
        let mut block = [0; BLOCK];
        self.file.read_exact_at(&mut block, 0)?;
        change(&mut block);
        self.file.write_all_at(&block, 0)
    }

    /// Writes what is buffered; holes stay holes.
    pub fn flush(&mut self) -> io::Result<()> {
        for (index, chunk) in self.buffer[..self.used].chunks(HOLE).enumerate() {
            if *chunk != ZEROS[..chunk.len()] {
                self.file.write_all_at(chunk, self.start + (index * HOLE) as u64)?;
            }
        }
        self.start += self.used as u64;
        self.used = 0;
        // The last bytes may have been a hole.
        self.file.set_len(self.start)
    }

    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.used == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.used..])
    }
}
