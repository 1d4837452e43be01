//! A container's output on disk, in the format of Docker's `json-file` driver or a shorter one of our own.
//!
//! ```text
//! pump --chunks--> writer --lines--> <id>-json.log, .1, .2 ...  --> reader --> GET /containers/{id}/logs
//!                       \-- LogPosition (how far, which rotation) --/
//! ```

mod entry;
mod options;
mod reader;
mod unfinished;
mod writer;

pub use entry::Entry;
pub use options::{LogFormat, LogOptions, LogOptionsError, parse_size};
pub use reader::{LogReader, Selection};
pub use writer::{LogSink, LogWriter};

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

    /// The file with lines that have not ended yet.
    fn unfinished(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".unfinished");
        name.into()
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

    /// Every file that there is, oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let older = (1..self.options.max_files).rev().map(|n| self.rotated(n)).filter(|path| path.exists());
        older.chain(std::iter::once(self.path.clone())).collect()
    }
}
