//! Writes a container's output to its log, line by line, in batches.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Log;
use super::entry::{self, Frame};
use super::journal::{Journal, Left, Taken, index};
use super::mark::Mark;
use crate::clock::Timestamp;
use crate::output::{Chunk, Source};

/// The longest piece of a line that becomes one entry. Source: moby `daemon/logger/copier.go`.
pub(super) const MAX_ENTRY_BYTES: usize = 16 * 1024;
/// How much is gathered for one write: more leaves the processor's cache.
const WRITE_BYTES: usize = 128 * 1024;
/// How many chunks may wait; more hold the process back.
const PENDING_CHUNKS: usize = 32;

/// Where the pump puts output for the log.
pub struct LogSink {
    queue: mpsc::Sender<Item>,
    writer: JoinHandle<()>,
    journal: Arc<Journal>,
    /// It was told that the journal does not work.
    without_journal: AtomicBool,
}

/// Output on its way to the log.
struct Item {
    at: Timestamp,
    chunk: Chunk,
    /// Where its spool ends behind it, if it was taken by the journal.
    end: Option<u64>,
    /// Told when it is in the file.
    written: Option<oneshot::Sender<()>>,
}

impl LogSink {
    /// Takes output from a fifo so that an engine that is killed before it is logged does not lose it; none at its end. When:
    /// what was taken before was written by [`LogSink::write_through`].
    ///
    /// # Errors
    /// `WouldBlock` when the fifo is empty; what else the file system says, and then nothing was taken.
    pub fn take(&self, source: Source, fifo: impl AsFd) -> io::Result<Option<Taken>> {
        self.journal.take(source, fifo)
    }

    /// Says, once, that an engine that is killed may lose some of this container's output.
    pub fn tell_without_journal(&self, error: &io::Error) {
        if !self.without_journal.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "an engine that is killed may lose some of a container's output");
        }
    }

    /// Hands over some output; waits when the disk is slower than the process.
    pub async fn write(&self, chunk: Chunk) {
        // Without a writer there was an error, which it has reported.
        let _ = self.queue.send(Item { at: Timestamp::now(), chunk, end: None, written: None }).await;
    }

    /// As [`LogSink::write`] for what was taken, and waits until it is in the file, or cannot be written.
    pub async fn write_through(&self, chunk: Chunk, end: u64) {
        let (written, told) = oneshot::channel();
        let _ = self.queue.send(Item { at: Timestamp::now(), chunk, end: Some(end), written: Some(written) }).await;
        // A writer that is gone has reported why.
        let _ = told.await;
    }

    /// Waits until everything is in the file.
    pub async fn finish(self) {
        drop(self.queue);
        if let Err(error) = self.writer.await {
            tracing::error!(%error, "a log writer ended early");
        }
    }
}

/// One run's writer of a log.
pub struct LogWriter {
    log: Arc<Log>,
    file: File,
    file_bytes: u64,
    inode: u64,
    /// Lines that have not ended yet, by source.
    unfinished: [Vec<u8>; 2],
    /// How much of each spool is in the file, in the lines or on its way to the file.
    done: [u64; 2],
    journal: Arc<Journal>,
    /// Lines on their way to the file.
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log for a run and starts writing. What an engine that was killed in the middle of it was just logging is
    /// logged now. `bundle` is the container's, which this run has for itself.
    ///
    /// # Errors
    /// What opening the file says.
    pub fn start(log: Arc<Log>, bundle: &Path) -> io::Result<LogSink> {
        let (journal, left) = Journal::open(bundle);
        let (journal, took_up) = (Arc::new(journal), left.is_some());
        let left = left.unwrap_or_default();
        if took_up {
            log.go_back(left.mark.inode, left.mark.offset)?;
        }
        let file = open(&log)?;
        let (file_bytes, inode) = (file.metadata()?.len(), file.metadata()?.ino());
        log.position.send_modify(|position| position.idle = false);
        let Left { mark: Mark { unfinished, done, .. }, pending } = left;
        let own = Arc::clone(&journal);
        let mut writer = Self { log, file, file_bytes, inode, unfinished, done, journal: own, buffer: Vec::new() };
        let again = pending.into_iter().map(|(source, taken)| Item {
            at: Timestamp::now(),
            chunk: Chunk { source, bytes: taken.bytes },
            end: Some(taken.end),
            written: None,
        });
        writer.append(&again.collect::<Vec<_>>())?;
        let (queue, chunks) = mpsc::channel(PENDING_CHUNKS);
        Ok(LogSink {
            queue,
            writer: tokio::spawn(writer.run(chunks)),
            journal,
            without_journal: AtomicBool::new(false),
        })
    }

    async fn run(mut self, mut chunks: mpsc::Receiver<Item>) {
        let log = Arc::clone(&self.log);
        let mut batch = Vec::new();
        let mut reported = false;
        while chunks.recv_many(&mut batch, PENDING_CHUNKS).await > 0 {
            let mut work: Vec<Item> = std::mem::take(&mut batch);
            let told: Vec<_> = work.iter_mut().filter_map(|item| item.written.take()).collect();
            let is_last = chunks.is_empty();
            let written = tokio::task::spawn_blocking(move || {
                let outcome = self.append(&work);
                if is_last {
                    // A burst must not keep its memory.
                    self.buffer = Vec::new();
                }
                (self, outcome)
            });
            let outcome;
            (self, outcome) = match written.await {
                Ok(back) => back,
                Err(error) => {
                    tracing::error!(%error, "a log writer ended early");
                    break;
                }
            };
            // Whoever has gone meanwhile needs no word.
            for told in told {
                let _ = told.send(());
            }
            if let Err(error) = outcome
                && !std::mem::replace(&mut reported, true)
            {
                tracing::error!(path = %log.path.display(), %error, "cannot write a container's log; its output goes on");
            }
        }
        log.position.send_modify(|position| position.idle = true);
    }

    fn append(&mut self, batch: &[Item]) -> io::Result<()> {
        batch.iter().try_for_each(|item| self.take(item))?;
        self.flush()?;
        self.mark()
    }

    /// Notes what is in the file by now. When: nothing is on its way.
    fn mark(&self) -> io::Result<()> {
        self.journal.mark(Mark {
            inode: self.inode,
            offset: self.file_bytes,
            done: self.done,
            unfinished: self.unfinished.clone(),
        })
    }

    /// Turns a chunk into entries; the last line stays back until it ends.
    fn take(&mut self, item: &Item) -> io::Result<()> {
        let Item { at, chunk, end: spooled, .. } = item;
        let frame = Frame::new(self.log.options.format, chunk.source, *at);
        let mut line = std::mem::take(&mut self.unfinished[index(chunk.source)]);
        let mut rest = &chunk.bytes[..];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (ended, next) = rest.split_at(end + 1);
            if line.is_empty() && ended.len() <= MAX_ENTRY_BYTES {
                entry::encode(&mut self.buffer, ended, &frame);
            } else {
                line.extend_from_slice(ended);
                write_long(&mut self.buffer, &mut line, &frame);
                entry::encode(&mut self.buffer, &line, &frame);
                line.clear();
            }
            rest = next;
            if self.is_full() || self.buffer.len() >= WRITE_BYTES {
                self.note_done(chunk.source, *spooled, rest.len());
                self.flush()?;
                self.mark()?;
            }
        }
        self.note_done(chunk.source, *spooled, 0);
        line.extend_from_slice(rest);
        write_long(&mut self.buffer, &mut line, &frame);
        self.unfinished[index(chunk.source)] = line;
        Ok(())
    }

    fn note_done(&mut self, source: Source, end: Option<u64>, left: usize) {
        if let Some(end) = end {
            self.done[index(source)] = end.saturating_sub(left as u64);
        }
    }

    /// With what is on its way the file has its whole length.
    fn is_full(&self) -> bool {
        self.log.options.max_bytes.is_some_and(|max| self.file_bytes + self.buffer.len() as u64 >= max)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let rotate = self.is_full();
        let written = self.file.write_all(&self.buffer);
        self.file_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        if let Err(error) = written {
            // Some of it may be there.
            self.file_bytes = self.file.metadata()?.len();
            return Err(error);
        }
        if rotate {
            self.rotate()?;
        }
        self.log.position.send_modify(|position| {
            position.writes += 1;
            position.rotations += u64::from(rotate);
        });
        Ok(())
    }

    /// Moves every file one number up, the oldest away, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let files = self.log.options.max_files;
        for generation in (0..files).rev() {
            let (from, to) = (self.log.rotated(generation), self.log.rotated(generation + 1));
            let moved = if generation + 1 == files { std::fs::remove_file(&from) } else { std::fs::rename(&from, &to) };
            match moved {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = open(&self.log)?;
        (self.file_bytes, self.inode) = (0, self.file.metadata()?.ino());
        Ok(())
    }
}

impl Drop for LogWriter {
    /// A line that never ended is written as it is.
    fn drop(&mut self) {
        for source in [Source::Stdout, Source::Stderr] {
            let last = std::mem::take(&mut self.unfinished[index(source)]);
            if !last.is_empty() {
                entry::encode(&mut self.buffer, &last, &Frame::new(self.log.options.format, source, Timestamp::now()));
            }
        }
        if let Err(error) = self.flush() {
            tracing::error!(path = %self.log.path.display(), %error, "cannot write the end of a container's log");
        }
        self.journal.remove();
    }
}

fn open(log: &Log) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(&log.path)
}

/// Writes whole entries off the beginning of a line that is too long for one, never through a character.
fn write_long(buffer: &mut Vec<u8>, line: &mut Vec<u8>, frame: &Frame) {
    let mut done = 0;
    while line.len() - done > MAX_ENTRY_BYTES {
        let piece = &line[done..done + MAX_ENTRY_BYTES];
        let inside = piece.iter().rev().take(3).position(|byte| *byte >= 0xC0).map_or(0, |back| back + 1);
        let cut =
            if piece.last().is_some_and(|byte| *byte >= 0x80) { MAX_ENTRY_BYTES - inside } else { MAX_ENTRY_BYTES };
        entry::encode(buffer, &piece[..cut], frame);
        done += cut;
    }
    line.drain(..done);
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, LogFormat, LogOptions};
    use super::*;
    use axum::body::Bytes;

    async fn written(options: LogOptions, chunks: &[(Source, &[u8])]) -> (tempfile::TempDir, Arc<Log>) {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(Log::new(dir.path().join("x-json.log"), options));
        let sink = LogWriter::start(Arc::clone(&log), dir.path()).unwrap();
        for (source, bytes) in chunks {
            sink.write(Chunk { source: *source, bytes: Bytes::copy_from_slice(bytes) }).await;
        }
        sink.finish().await;
        (dir, log)
    }

    fn entries(log: &Log) -> Vec<Entry> {
        let text = std::fs::read(log.path()).unwrap();
        text.split_inclusive(|byte| *byte == b'\n')
            .map(|line| Entry::decode(log.options.format, line).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn lines_are_joined_across_chunks_and_sources_kept_apart() {
        let chunks: &[(Source, &[u8])] = &[
            (Source::Stdout, b"on"),
            (Source::Stderr, b"err\n"),
            (Source::Stdout, b"e\ntwo\nthr"),
            (Source::Stdout, b"ee"),
        ];
        let (_dir, log) = written(LogOptions::default(), chunks).await;
        let seen: Vec<_> = entries(&log).into_iter().map(|entry| (entry.source, entry.text)).collect();
        let expected = [
            (Source::Stderr, "err\n"),
            (Source::Stdout, "one\n"),
            (Source::Stdout, "two\n"),
            (Source::Stdout, "three"),
        ];
        assert_eq!(seen, expected.map(|(source, text)| (source, text.to_owned())));
    }

    #[tokio::test]
    async fn long_lines_are_cut_between_characters_and_nothing_is_lost() {
        let line = "ä".repeat(MAX_ENTRY_BYTES) + "x\nshort\n";
        let odd = [b"y", line.as_bytes()].concat();
        for text in [line.as_bytes(), &odd] {
            let chunks: Vec<_> = text.chunks(5000).map(|piece| (Source::Stdout, piece)).collect();
            let (_dir, log) = written(LogOptions::default(), &chunks).await;
            let all: String = entries(&log).into_iter().map(|entry| entry.text).collect();
            assert_eq!(all.as_bytes(), text);
            assert!(entries(&log).iter().all(|entry| entry.text.len() <= MAX_ENTRY_BYTES));
        }
    }

    #[tokio::test]
    async fn a_full_file_is_rotated_and_the_oldest_goes() {
        let options = LogOptions { max_bytes: Some(1), max_files: 3, ..LogOptions::default() };
        let (dir, log) = written(options.clone(), &[]).await;
        for text in ["1\n2\n3\n", "4\n"] {
            let sink = LogWriter::start(Arc::clone(&log), dir.path()).unwrap();
            sink.write(Chunk { source: Source::Stdout, bytes: Bytes::from_static(text.as_bytes()) }).await;
            sink.finish().await;
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["x-json.log", "x-json.log.1", "x-json.log.2"]);
        let newest = std::fs::read(log.rotated(1)).unwrap();
        assert_eq!(Entry::decode(LogFormat::Json, &newest).unwrap().text, "4\n");
        assert_eq!(log.watch().borrow().rotations, 4);
    }
}
