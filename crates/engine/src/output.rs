//! What a process writes, as it travels from its fifos to the log and to attached clients.

use axum::body::Bytes;

/// Where output came from. Its number is the one on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Standard output, or a terminal's output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Some output of a process, in order within its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it came from.
    pub source: Source,
    /// 1 to [`Chunk::MAX_BYTES`] bytes.
    pub bytes: Bytes,
}

impl Chunk {
    /// The most that one read of a process' output takes.
    pub const MAX_BYTES: usize = 64 * 1024;
}

/// Which output a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Wanted {
    /// Whether it was asked for.
    #[must_use]
    pub fn has(self, source: Source) -> bool {
        match source {
            Source::Stdout => self.stdout,
            Source::Stderr => self.stderr,
        }
    }
}
