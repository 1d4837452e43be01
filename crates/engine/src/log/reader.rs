//! Reads a log from its oldest file on, and follows it across rotations.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use super::{Entry, Log};
use crate::clock::Timestamp;
use crate::output::Wanted;

/// What a client wants of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Selection {
    /// Which sources.
    pub wanted: Wanted,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Nothing newer.
    pub until: Option<Timestamp>,
    /// Only so many of the last entries; everything when absent.
    pub tail: Option<usize>,
}

impl Selection {
    fn has(&self, entry: &Entry) -> bool {
        self.wanted.has(entry.source)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at <= until)
    }
}

/// How much one batch reads.
const BATCH_BYTES: u64 = 256 * 1024;
/// How much the search for the last entries reads at a time, backwards.
const TAIL_BLOCK: u64 = 64 * 1024;

/// A place in a log. Synchronous: call it in a blocking thread.
pub struct LogReader {
    log: Arc<Log>,
    selection: Selection,
    file: Option<File>,
    /// Files after the one that is read, oldest last.
    later: Vec<std::path::PathBuf>,
    /// The number of rotations when the last of `later` was the current file.
    rotations: u64,
    /// A line whose end has not been read yet.
    partial: Vec<u8>,
    /// Every entry from here on is newer than the client wants.
    past_until: bool,
}

impl LogReader {
    /// Begins at the first entry of the selection.
    ///
    /// # Errors
    /// What reading the files says.
    pub fn open(log: Arc<Log>, selection: Selection) -> io::Result<Self> {
        let rotations = log.position.borrow().rotations;
        let mut later = log.files();
        let mut offset = 0;
        if let Some(tail) = selection.tail {
            let (index, start) = find_tail(&later, tail)?;
            later.drain(..index);
            offset = start;
        }
        later.reverse();
        let mut reader = Self { log, selection, file: None, later, rotations, partial: Vec::new(), past_until: false };
        reader.open_next()?;
        if let Some(file) = &mut reader.file {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(reader)
    }

    fn open_next(&mut self) -> io::Result<()> {
        while let Some(path) = self.later.pop() {
            match File::open(&path) {
                Ok(file) => {
                    self.file = Some(file);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next entries; none at all when the log has been read to its present end.
    ///
    /// # Errors
    /// What reading the files says.
    pub fn next_batch(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        while entries.is_empty() && !self.past_until {
            if !self.fill()? && !self.advance()? {
                break;
            }
            self.take_lines(&mut entries);
        }
        Ok(entries)
    }

    /// No entry to come can be wanted.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.past_until
    }

    /// Reads on in the current file; false at its end.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        Ok(file.by_ref().take(BATCH_BYTES).read_to_end(&mut self.partial)? > 0)
    }

    /// Goes to the next file; false when there is none.
    fn advance(&mut self) -> io::Result<bool> {
        if self.later.is_empty() {
            let rotations = self.log.position.borrow().rotations;
            let behind = rotations - self.rotations;
            if behind == 0 && self.file.is_some() {
                return Ok(false);
            }
            // Written before it was rotated, and not read yet.
            if self.fill()? {
                return Ok(true);
            }
            self.rotations = rotations;
            // A reader that has a file open has the oldest of them.
            let unread = behind + u64::from(self.file.is_none());
            self.later = (0..unread).map(|generation| self.log.rotated(generation)).collect();
        }
        let before = self.later.len();
        self.open_next()?;
        Ok(self.later.len() < before && self.file.is_some() && self.fill()?)
    }

    fn take_lines(&mut self, entries: &mut Vec<Entry>) {
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in self.partial[..end].split_inclusive(|byte| *byte == b'\n') {
            // A line that was cut off when the disk was full is left out.
            let Some(entry) = Entry::decode(self.log.options.format, line) else { continue };
            if self.selection.until.is_some_and(|until| entry.at > until) {
                self.past_until = true;
                break;
            }
            if self.selection.has(&entry) {
                entries.push(entry);
            }
        }
        self.partial.drain(..end);
    }
}

/// Finds the file (by its index) and offset where the last `tail` entries begin.
fn find_tail(files: &[std::path::PathBuf], tail: usize) -> io::Result<(usize, u64)> {
    let mut missing = tail;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match find_line_from_end(&mut file, missing)? {
            Ok(offset) => return Ok((index, offset)),
            Err(found) => missing -= found,
        }
    }
    Ok((0, 0))
}

/// The offset where the last `count` lines begin, or how many lines there are if they are fewer.
fn find_line_from_end(file: &mut File, count: usize) -> io::Result<Result<u64, usize>> {
    let length = file.metadata()?.len();
    if count == 0 {
        return Ok(Ok(length));
    }
    let (mut end, mut found) = (length, 0);
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(TAIL_BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if found == count {
                return Ok(Ok(start + at as u64 + 1));
            }
            found += 1;
        }
        end = start;
    }
    Ok(if found == count { Ok(0) } else { Err(found) })
}

#[cfg(test)]
mod tests {
    use super::super::{LogOptions, LogWriter};
    use super::*;
    use crate::output::{Chunk, Source};
    use axum::body::Bytes;

    const BOTH: Wanted = Wanted { stdout: true, stderr: true };

    async fn write(log: &Arc<Log>, text: &str) {
        let sink = LogWriter::start(Arc::clone(log), log.path().parent().unwrap()).unwrap();
        sink.write(Chunk { source: Source::Stdout, bytes: Bytes::copy_from_slice(text.as_bytes()) }).await;
        sink.finish().await;
    }

    fn read_all(reader: &mut LogReader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let batch = reader.next_batch().unwrap();
            if batch.is_empty() {
                return all;
            }
            all.extend(batch.into_iter().map(|entry| entry.text.trim_end().to_owned()));
        }
    }

    fn log_in(dir: &tempfile::TempDir, options: LogOptions) -> Arc<Log> {
        Arc::new(Log::new(dir.path().join("x-json.log"), options))
    }

    #[tokio::test]
    async fn the_last_entries_are_found_over_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir, LogOptions { max_bytes: Some(100), max_files: 4, ..LogOptions::default() });
        for text in ["1\n2\n", "3\n4\n", "5\n"] {
            write(&log, text).await;
        }
        for (tail, expected) in [(0, &[][..]), (1, &["5"]), (3, &["3", "4", "5"]), (9, &["1", "2", "3", "4", "5"])] {
            let selection = Selection { wanted: BOTH, tail: Some(tail), ..Selection::default() };
            let mut reader = LogReader::open(Arc::clone(&log), selection).unwrap();
            assert_eq!(read_all(&mut reader), expected, "tail {tail}");
        }
    }

    #[tokio::test]
    async fn a_reader_follows_across_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir, LogOptions { max_bytes: Some(1), max_files: 3, ..LogOptions::default() });
        let selection = Selection { wanted: BOTH, ..Selection::default() };
        let mut reader = LogReader::open(Arc::clone(&log), selection).unwrap();
        assert_eq!(read_all(&mut reader), [""; 0]);
        for n in 0..5 {
            write(&log, &format!("{n}\n")).await;
            assert_eq!(read_all(&mut reader), [n.to_string()]);
        }
    }

    #[tokio::test]
    async fn times_and_sources_select() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir, LogOptions::default());
        write(&log, "old\n").await;
        let between = Timestamp::now();
        write(&log, "new\n").await;
        let read = |selection| read_all(&mut LogReader::open(Arc::clone(&log), selection).unwrap());
        assert_eq!(read(Selection { wanted: BOTH, since: Some(between), ..Selection::default() }), ["new"]);
        assert_eq!(read(Selection { wanted: BOTH, until: Some(between), ..Selection::default() }), ["old"]);
        let errors = Wanted { stdout: false, stderr: true };
        assert_eq!(read(Selection { wanted: errors, ..Selection::default() }), [""; 0]);
    }
}
