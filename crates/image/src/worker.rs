//! Conversion in a process of its own, because layers are made by strangers.
//!
//! ```text
//! engine (root)                                         workers (nobody, no capability, seccomp; see `jail`)
//!   input ── feed ──────────────── compressed bytes ──> decompressor ──┐ pipe
//!        └── not compressed ──┐                                        │
//!                             ├── hash, count ── tar bytes ──> converter ── EROFS bytes ──> staged file
//!   diffID, checks ◀── answer ┴────────────────◀─────────────────────────┘
//! ```
//!
//! The digest of the uncompressed stream is computed here, over the very bytes that the converter is given: a converter
//! that a layer has taken over can spoil that layer's file, but cannot pass it off as another layer's. For the same
//! reason nothing that a worker says is used before it was compared with the file.
//! Source: docs/design/0010-conversion-worker.md.

mod feed;
mod filter;
mod jail;
mod process;
mod serve;
mod wire;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use proto::Digest;

use crate::compression::{Compression, HEAD_BYTES, StreamRefusal};
use crate::convert::{Converted, LayerError, convert, layer_uuid};
use crate::erofs::{SuperblockFault, read_superblock};
use crate::limits::Limits;
use crate::worker_fault::WorkerFault;

pub use self::jail::{Jail, JailError};
pub use serve::serve_if_converter;

use process::Worker;
use wire::{Answer, Facts, Job};

impl From<WorkerFault> for LayerError {
    fn from(fault: WorkerFault) -> Self {
        Self::Worker(Box::new(fault))
    }
}

/// Where layers are converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Converter {
    /// In jailed processes of this very program, whose `main` must begin with [`serve_if_converter`].
    Workers,
    /// In the calling process, without any wall. For tests, and for layers that the program made itself.
    InProcess,
}

impl Converter {
    /// Converts one layer; see [`convert`].
    pub(crate) fn run(self, input: impl Read, output: &File, limits: &Limits) -> Result<Converted, LayerError> {
        match self {
            Self::InProcess => convert(input, output.try_clone().map_err(LayerError::Write)?, limits),
            Self::Workers => convert_outside(input, output, limits),
        }
    }
}

/// Converts one layer outside of a store. Shape: `tar` is the layer's stream, `output` is empty and open for reading and writing;
/// gives the layer's diffID. Nothing is synced.
///
/// # Errors
/// As the variants of [`LayerError`] say; `output` then holds rubbish.
pub fn convert_layer(converter: Converter, tar: impl Read, output: &File) -> Result<Digest, LayerError> {
    converter.run(tar, output, &Limits::default()).map(|converted| converted.diff_id)
}

fn convert_outside(mut input: impl Read, output: &File, limits: &Limits) -> Result<Converted, LayerError> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    input.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(LayerError::from_read)?;
    let compression =
        Compression::of(&head).map_err(|program| LayerError::Refused(StreamRefusal::Unsupported { program }))?;
    let input = head.as_slice().chain(input);
    let mut converter = Worker::start(Job::Convert, limits, output.as_fd())?;
    let diff_id = match compression {
        Compression::None => feed::plain(input, &mut converter, limits)?,
        Compression::Gzip | Compression::Zstd | Compression::Xz | Compression::Bzip2 => {
            feed::compressed(input, &mut converter, limits)?
        }
    };
    converter.give_digest(&diff_id)?;
    match converter.answer()? {
        Answer::Converted(facts) => check(output, &facts, diff_id, limits),
        Answer::Decompressed => Err(WorkerFault::Answer("it converted nothing").into()),
        Answer::Refused(refusal) => Err(refusal.try_into()?),
        Answer::NoJail(reason) => Err(WorkerFault::Jail(wire::shown(&reason)).into()),
    }
}

/// Compares what the worker says with its file and with the limits.
fn check(output: &File, facts: &Facts, diff_id: Digest, limits: &Limits) -> Result<Converted, LayerError> {
    if facts.entries > limits.layer_entries || facts.content_bytes > limits.layer_bytes {
        return Err(WorkerFault::Answer("it passed a limit").into());
    }
    let mut block = [0; 4096];
    let length = output.metadata().map_err(LayerError::Write)?.len();
    if length != facts.file_bytes {
        return Err(WorkerFault::File(SuperblockFault::Length).into());
    }
    output.read_exact_at(&mut block, 0).map_err(LayerError::Write)?;
    read_superblock(&block, layer_uuid(&diff_id), length).map_err(WorkerFault::File)?;
    Ok(Converted {
        diff_id,
        content_bytes: facts.content_bytes,
        entries: facts.entries,
        file_bytes: facts.file_bytes,
        root_opaque: facts.root_opaque,
    })
}
