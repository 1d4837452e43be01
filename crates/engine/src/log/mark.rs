//! How far a log has come, on disk.
//!
//! Two places take turns, and the one with the higher number counts. Its head is written last and lies within one page, which
//! the kernel writes wholly or not at all, whenever the engine is killed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::LazyLock;

use super::writer::MAX_ENTRY_BYTES;

/// Begins every head.
const MAGIC: &[u8; 8] = b"bhmark\x001";
/// Bytes of a head: the magic, the boot, seven numbers.
const HEAD_BYTES: usize = 8 + 16 + 7 * 8;
/// The head has a page of its own.
const PAGE: u64 = 4096;
/// One place: the head, then both lines.
const PLACE: u64 = PAGE + 2 * MAX_ENTRY_BYTES as u64;

/// How far a log has come. Shape: by source where there are two, standard output first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// The log file.
    pub inode: u64,
    /// Its length in bytes.
    pub offset: u64,
    /// How much of each spool is in the log, or in the lines.
    pub done: [u64; 2],
    /// Lines that have not ended yet, each of at most [`MAX_ENTRY_BYTES`] bytes.
    pub unfinished: [Vec<u8>; 2],
}

/// The file with the marks.
#[derive(Debug)]
pub struct MarkFile {
    file: fs::File,
    number: u64,
}

/// Differs from one start of the machine to the next. Source: Linux Documentation/admin-guide/sysctl/kernel.rst, random.
static BOOT: LazyLock<[u8; 16]> = LazyLock::new(|| {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut boot = [0; 16];
    // All zeros where there is none; then it does not differ.
    let _ = hex::decode_to_slice(text.trim().replace('-', ""), &mut boot);
    boot
});

impl MarkFile {
    /// Makes the file, without a mark.
    ///
    /// # Errors
    /// What the file system says.
    pub fn make(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, number: 0 })
    }

    /// Opens the file and reads what was marked last; none when there is no mark of this boot of the machine.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(path: &Path) -> io::Result<Option<(Self, Mark)>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let newest =
            [0, 1].into_iter().filter_map(|place| read_place(&file, place * PLACE)).max_by_key(|(number, _)| *number);
        Ok(newest.map(|(number, mark)| (Self { file, number }, mark)))
    }

    /// Writes a mark, which counts from now on.
    ///
    /// # Errors
    /// What the file system says; the mark before counts then.
    pub fn write(&mut self, mark: &Mark) -> io::Result<()> {
        let number = self.number + 1;
        let place = number % 2 * PLACE;
        let mut at = place + PAGE;
        for line in mark.unfinished.iter().filter(|line| !line.is_empty()) {
            self.file.write_all_at(line, at)?;
            at += line.len() as u64;
        }
        let lengths = [mark.unfinished[0].len() as u64, mark.unfinished[1].len() as u64];
        let numbers = [number, mark.inode, mark.offset, mark.done[0], mark.done[1], lengths[0], lengths[1]];
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&*BOOT);
        numbers.iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
        self.file.write_all_at(&head, place)?;
        self.number = number;
        Ok(())
    }
}

fn read_place(file: &fs::File, place: u64) -> Option<(u64, Mark)> {
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, place).ok()?;
    let head = head.strip_prefix(MAGIC)?.strip_prefix(&BOOT[..])?;
    let mut numbers = head.chunks_exact(8).map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes));
    let mut next = || numbers.next();
    let (number, inode, offset, done) = (next()?, next()?, next()?, [next()?, next()?]);
    let mut at = place + PAGE;
    let mut line = |length: u64| {
        let mut line = vec![0; usize::try_from(length).ok().filter(|length| *length <= MAX_ENTRY_BYTES)?];
        file.read_exact_at(&mut line, at).ok()?;
        at += length;
        Some(line)
    };
    let unfinished = [line(next()?)?, line(next()?)?];
    Some((number, Mark { inode, offset, done, unfinished }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_mark_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(MarkFile::read(&path).unwrap().is_none());
        let mut file = MarkFile::make(&path).unwrap();
        assert!(MarkFile::read(&path).unwrap().is_none());
        let mark = |offset, out: &[u8], err: &[u8]| Mark {
            inode: 5,
            offset,
            done: [offset * 2, 1],
            unfinished: [out.to_vec(), err.to_vec()],
        };
        let longest = vec![b'l'; MAX_ENTRY_BYTES];
        let marks =
            [mark(0, b"", b""), mark(10, b"a line", b"another"), mark(20, &longest, &longest), mark(30, b"", b"x")];
        for written in &marks {
            file.write(written).unwrap();
            assert_eq!(&MarkFile::read(&path).unwrap().unwrap().1, written);
        }
        // A writer that is killed before the head leaves the mark before.
        file.file.write_all_at(b"half", PLACE + PAGE).unwrap();
        assert_eq!(MarkFile::read(&path).unwrap().unwrap().1, marks[3]);
        // One whose machine has started anew is none.
        file.file.write_all_at(&[1; 16], MAGIC.len() as u64).unwrap();
        file.file.write_all_at(&[1; 16], PLACE + MAGIC.len() as u64).unwrap();
        assert!(MarkFile::read(&path).unwrap().is_none());
    }
}
