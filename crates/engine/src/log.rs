//! A container's output on disk, in the format of Docker's `json-file` driver or a shorter one of our own.
//!
//! ```text
//! pump --chunks--> writer --lines--> <id>-json.log, .1, .2 ...  --> reader --> GET /containers/{id}/logs
//!                       \-- LogPosition (how far, which rotation) --/
//! ```
//!
//! Every byte is logged once, though the engine is killed: see [`journal`].

mod entry;
mod journal;
mod mark;
mod options;
mod reader;
mod writer;

pub use entry::Entry;
pub use options::{LogFormat, LogOptions, LogOptionsError, parse_size};
pub use reader::{LogReader, Selection};
pub use writer::{LogSink, LogWriter};

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

/// How far a log has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogPosition {
    /// How many times the file was rotated since the engine began.
    pub rotations: u64,
    /// Counts every write, so that a reader can wait for the next.
    pub writes: u64,
    /// Nobody writes: what is there is all, until the container runs again.
    pub idle: bool,
}

/// The log of one container: its files and how far they are written.
pub struct Log {
    path: PathBuf,
    options: LogOptions,
    position: watch::Sender<LogPosition>,
}

impl Log {
    /// The log at `path`; no file is made before the first line.
    #[must_use]
    pub fn new(path: PathBuf, options: LogOptions) -> Self {
        Self { path, options, position: watch::Sender::new(LogPosition { idle: true, ..LogPosition::default() }) }
    }

    /// The file that is written, if it is one that others can read.
    #[must_use]
    pub fn shown_path(&self) -> Option<&Path> {
        (self.options.format == LogFormat::Json).then_some(&self.path)
    }

    /// The file that is written.
    #[cfg(test)]
    fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of the writer, to wait on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LogPosition> {
        self.position.subscribe()
    }

    /// The file that was current `generation` rotations ago.
    fn rotated(&self, generation: u64) -> PathBuf {
        if generation == 0 {
            return self.path.clone();
        }
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{generation}"));
        name.into()
    }

    /// Makes the log what it was when this file of it was so long. Files that somebody else has changed are left as they are.
    ///
    /// When: nobody writes or reads it.
    fn go_back(&self, inode: u64, offset: u64) -> io::Result<()> {
        let is_it = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| file.ino() == inode);
        let Some(rotations) = (0..=self.options.max_files).find(|generation| is_it(&self.rotated(*generation))) else {
            return Ok(());
        };
        let path = self.rotated(rotations);
        if std::fs::metadata(&path)?.len() < offset {
            return Ok(());
        }
        OpenOptions::new().write(true).open(&path)?.set_len(offset)?;
        for generation in 0..rotations {
            match std::fs::remove_file(self.rotated(generation)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for generation in (rotations > 0).then_some(rotations..=self.options.max_files).into_iter().flatten() {
            match std::fs::rename(self.rotated(generation), self.rotated(generation - rotations)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Every file that there is, oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let older = (1..self.options.max_files).rev().map(|n| self.rotated(n)).filter(|path| path.exists());
        older.chain(std::iter::once(self.path.clone())).collect()
    }
}
