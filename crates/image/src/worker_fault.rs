//! What can go wrong with a process that converts layers.

use proto::ErrorKind;

use crate::erofs::SuperblockFault;
use crate::limits::MAX_WORKER_BYTES;

/// What a converting process did other than answer.
#[derive(Debug, thiserror::Error)]
pub enum WorkerFault {
    /// It cannot be started.
    #[error("cannot start the conversion worker")]
    Start(#[source] std::io::Error),
    /// This program's `main` does not begin with [`serve_if_converter`](crate::serve_if_converter), so that it cannot be its own worker.
    #[error("this program cannot convert layers: its main does not begin with serve_if_converter")]
    NotServed,
    /// It could not lock itself in.
    #[error("the conversion worker cannot lock itself in: {0}")]
    Jail(String),
    /// Its memory limit ended it.
    #[error("the conversion needs more than {} MiB of memory", MAX_WORKER_BYTES >> 20)]
    Memory,
    /// Its limit of processor time ended it.
    #[error("the conversion takes more processor time than any layer should")]
    Time,
    /// The file grew over its limit.
    #[error("the converted layer grows over its limit")]
    FileSize,
    /// It made a system call that no conversion makes.
    #[error("the conversion worker tried a forbidden system call and was ended")]
    Forbidden,
    /// It ended without an answer.
    #[error("the conversion worker ended without an answer: {0}")]
    Died(String),
    /// It took or gave nothing for too long.
    #[error("the conversion worker made no progress for {seconds} s")]
    Stalled {
        /// How long it was waited for.
        seconds: u64,
    },
    /// What it said is not what it may say.
    #[error("the conversion worker gave a wrong answer: {0}")]
    Answer(&'static str),
    /// What it wrote is not the layer.
    #[error("the conversion worker wrote no valid layer")]
    File(#[source] SuperblockFault),
}

impl WorkerFault {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory | Self::Time | Self::FileSize => ErrorKind::ResourceExhausted,
            Self::Stalled { .. } => ErrorKind::DeadlineExceeded,
            Self::Start(_) => ErrorKind::Unavailable,
            Self::NotServed | Self::Jail(_) | Self::Forbidden | Self::Died(_) | Self::Answer(_) | Self::File(_) => {
                ErrorKind::Internal
            }
        }
    }
}
