//! What was taken out of a process' fifos and is not surely in its log yet, so that an engine that is killed in between
//! neither loses output nor logs it twice.
//!
//! ```text
//! fifo ──splice──▶ spool ──▶ log file ──▶ mark
//! ```
//!
//! The kernel itself moves output from the fifo into the spool: what has left the fifo is in the spool, wherever the engine
//! is killed. The mark says how much of the spool is in the log, how long the log was then, and which lines had not ended.
//! The next engine cuts the log back to the mark and logs again what the spool holds beyond it.
//!
//! The files are in the container's bundle and go with it. They are of one boot of the machine: after another one there is
//! no fifo to go on with, and nobody knows what of them was written back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use rustix::pipe::{SpliceFlags, splice};

use super::mark::{Mark, MarkFile};
use crate::output::{Chunk, Source};

/// A spool that has become this long begins again, once all of it is in the log.
const LONG: u64 = 1 << 20;

/// The journal of one run.
pub struct Journal {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What was marked last.
    mark: Mark,
    /// Made for the first output.
    marks: Option<MarkFile>,
    spools: [Option<Spool>; 2],
}

struct Spool {
    file: File,
    length: u64,
}

/// Output that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// It.
    pub bytes: Bytes,
    /// Where the spool ends behind it.
    pub end: u64,
}

/// What a killed engine has left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The state of the log to go back to.
    pub mark: Mark,
    /// What is to be logged again, by source, and where the spool ends behind it.
    pub pending: Vec<(Source, Taken)>,
}

/// Where the state of a source is.
#[must_use]
pub fn index(source: Source) -> usize {
    usize::from(source == Source::Stderr)
}

impl Journal {
    /// Opens the journal in a container's bundle, and tells what a killed engine has left of this run. What cannot be read is
    /// not there: it is of a moment, not of the log. When: what is told is logged and marked before anything is taken.
    #[must_use]
    pub fn open(folder: &Path) -> (Self, Option<Left>) {
        let mut state = State::default();
        let left = state.take_up(folder);
        if let Err(error) = &left {
            tracing::warn!(folder = %folder.display(), %error, "what was just being logged may be lost");
            state = State::default();
        }
        (Self { folder: folder.to_owned(), state: Mutex::new(state) }, left.unwrap_or_default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes output from a fifo; none at its end. When: all that was taken of this source before is marked.
    ///
    /// # Errors
    /// `WouldBlock` when the fifo is empty; what else the file system says, and then nothing was taken.
    pub fn take(&self, source: Source, fifo: impl AsFd) -> io::Result<Option<Taken>> {
        let mut state = self.state();
        state.begin(&self.folder)?;
        state.shorten(source)?;
        let spool = state.spool(&self.folder, source)?;
        let mut end = spool.length;
        let moved = rustix::io::retry_on_intr(|| {
            splice(&fifo, None, &spool.file, Some(&mut end), Chunk::MAX_BYTES, SpliceFlags::NONBLOCK)
        })?;
        if moved == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; moved];
        spool.file.read_exact_at(&mut bytes, spool.length)?;
        spool.length += moved as u64;
        Ok(Some(Taken { bytes: Bytes::from(bytes), end: spool.length }))
    }

    /// Notes the state of the log. When: everything that it says is in the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn mark(&self, mark: Mark) -> io::Result<()> {
        let mut state = self.state();
        state.mark = mark;
        state.write()
    }

    /// Removes the files. When: everything is in the log, lines that have not ended, too.
    pub fn remove(&self) {
        let mut state = self.state();
        // The mark first: without it nobody reads the rest.
        let made = state.marks.take().map(|_| mark_path(&self.folder)).into_iter();
        let sources = [Source::Stdout, Source::Stderr].into_iter();
        let spools =
            sources.filter_map(|source| state.spools[index(source)].take().map(|_| spool_path(&self.folder, source)));
        for path in made.chain(spools) {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "the end of a container's output may be logged twice");
            }
        }
    }
}

impl State {
    /// Reads what is there.
    fn take_up(&mut self, folder: &Path) -> io::Result<Option<Left>> {
        let Some((marks, mark)) = MarkFile::read(&mark_path(folder))? else { return Ok(None) };
        let mut left = Left { mark, pending: Vec::new() };
        for source in [Source::Stdout, Source::Stderr] {
            let file = match OpenOptions::new().read(true).write(true).open(spool_path(folder, source)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let (length, done) = (file.metadata()?.len(), &mut left.mark.done[index(source)]);
            if length > *done {
                let mut bytes = vec![0; usize::try_from(length - *done).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, *done)?;
                left.pending.push((source, Taken { bytes: Bytes::from(bytes), end: length }));
            }
            *done = length.min(*done);
            self.spools[index(source)] = Some(Spool { file, length });
        }
        (self.marks, self.mark) = (Some(marks), left.mark.clone());
        Ok(Some(left))
    }

    /// The mark is there before the first byte is taken.
    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        if self.marks.is_none() {
            self.marks = Some(MarkFile::make(&mark_path(folder))?);
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        match &mut self.marks {
            Some(marks) => marks.write(&self.mark),
            None => Ok(()),
        }
    }

    /// Begins a long spool again. Between the two steps it is shorter than what is marked of it, which means that nothing is
    /// to be logged again.
    fn shorten(&mut self, source: Source) -> io::Result<()> {
        let Some(spool) = &mut self.spools[index(source)] else { return Ok(()) };
        let done = &mut self.mark.done[index(source)];
        if spool.length < LONG || spool.length != *done {
            return Ok(());
        }
        spool.file.set_len(0)?;
        (spool.length, *done) = (0, 0);
        self.write()
    }

    fn spool(&mut self, folder: &Path, source: Source) -> io::Result<&mut Spool> {
        let spool = &mut self.spools[index(source)];
        if spool.is_none() {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
            *spool = Some(Spool { file: file.open(spool_path(folder, source))?, length: 0 });
        }
        spool.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn mark_path(folder: &Path) -> PathBuf {
    folder.join("log-mark")
}

fn spool_path(folder: &Path, source: Source) -> PathBuf {
    folder.join(match source {
        Source::Stdout => "log-stdout",
        Source::Stderr => "log-stderr",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (reader, writer)
    }

    #[test]
    fn what_was_taken_is_told_until_it_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, mut writer) = pipe();
        let (journal, left) = Journal::open(dir.path());
        assert_eq!(left, None);
        assert_eq!(journal.take(Source::Stdout, &reader).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        writer.write_all(b"one").unwrap();
        let taken = journal.take(Source::Stdout, &reader).unwrap().unwrap();
        assert_eq!((&taken.bytes[..], taken.end), (&b"one"[..], 3));
        // The engine dies here, and another one comes.
        let (journal, left) = Journal::open(dir.path());
        assert_eq!(left.unwrap().pending, [(Source::Stdout, taken)]);
        let unfinished = [b"one".to_vec(), Vec::new()];
        let mark = Mark { inode: 7, offset: 9, done: [3, 0], unfinished };
        journal.mark(mark.clone()).unwrap();
        let (journal, left) = Journal::open(dir.path());
        assert_eq!(left, Some(Left { mark, pending: Vec::new() }));
        drop(writer);
        assert_eq!(journal.take(Source::Stdout, &reader).unwrap(), None);
        journal.remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_long_spool_begins_again_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, mut writer) = pipe();
        let (journal, _) = Journal::open(dir.path());
        let piece = vec![b'x'; 64 << 10];
        let mut longest = 0;
        for _ in 0..40 {
            writer.write_all(&piece).unwrap();
            let taken = journal.take(Source::Stderr, &reader).unwrap().unwrap();
            assert_eq!(taken.bytes, piece);
            longest = longest.max(taken.end);
            journal.mark(Mark { done: [0, taken.end], ..Mark::default() }).unwrap();
        }
        assert!(longest <= LONG + piece.len() as u64, "{longest}");
        // Killed between the two steps: the spool is empty, and the mark speaks of a long one.
        let spool = OpenOptions::new().write(true).open(spool_path(dir.path(), Source::Stderr)).unwrap();
        spool.set_len(0).unwrap();
        let (journal, left) = Journal::open(dir.path());
        let left = left.unwrap();
        assert_eq!((left.mark.done, left.pending), ([0, 0], vec![]));
        journal.mark(left.mark).unwrap();
        writer.write_all(b"next").unwrap();
        let taken = journal.take(Source::Stderr, &reader).unwrap().unwrap();
        let (_, left) = Journal::open(dir.path());
        assert_eq!(left.unwrap().pending, [(Source::Stderr, taken)]);
    }
}
