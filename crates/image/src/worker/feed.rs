//! Bytes on their way to the workers.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use proto::Digest;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use sha2::{Digest as _, Sha256};

use super::process::{Feed, FeedError, Worker};
use super::wire::{Answer, Job, shown};
use crate::compression::StreamRefusal;
use crate::convert::LayerError;
use crate::limits::Limits;
use crate::worker_fault::WorkerFault;

/// Bytes moved at once, and the pipes' size: fewer, longer turns for the processes at both ends.
pub(super) const PIPE_BYTES: usize = 1 << 20;
const CHUNK: usize = 256 << 10;

/// A stream that did not arrive at the converter.
enum PumpError {
    /// The stream itself failed.
    Input(io::Error),
    /// It is longer than the limit.
    TooLong,
    /// The converter takes no more: it has something to say, or died.
    Closed,
    /// It takes nothing.
    Fault(WorkerFault),
}

impl From<FeedError> for PumpError {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Closed => Self::Closed,
            FeedError::Fault(fault) => Self::Fault(fault),
        }
    }
}

/// Gives the converter a stream that is not compressed; gives its digest.
pub(super) fn plain(input: impl Read, converter: &mut Worker, limits: &Limits) -> Result<Digest, LayerError> {
    let pumped = pump(input, converter.take_feed(), limits);
    settle(pumped, converter, limits)
}

/// Gives the converter what a decompressor makes of the stream; gives the digest of that.
pub(super) fn compressed(mut input: impl Read, converter: &mut Worker, limits: &Limits) -> Result<Digest, LayerError> {
    let (tar, tar_end) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| WorkerFault::Start(error.into()))?;
    enlarge(&tar);
    let mut decompressor = Worker::start(Job::Decompress, limits, tar_end.as_fd())?;
    // What the worker does not hold open ends with it.
    drop(tar_end);
    let to_converter = converter.take_feed();
    let (fed, said, pumped) = std::thread::scope(|scope| {
        let pumping = scope.spawn(|| pump(File::from(tar), to_converter, limits));
        let fed = copy(&mut input, decompressor.take_feed());
        if matches!(fed, Err(PumpError::Input(_) | PumpError::Fault(_))) {
            decompressor.kill();
        }
        let said = decompressor.answer();
        // Its end of the pipe is closed now, whatever happened, so that the other thread comes to an end.
        decompressor.kill();
        let pumped = pumping.join().unwrap_or_else(|_| Err(PumpError::Input(io::Error::other("the pump panicked"))));
        (fed, said, pumped)
    });
    // Who stopped first is who knows why: the converter, the source, the decompressor.
    if matches!(pumped, Err(PumpError::Closed | PumpError::Fault(_) | PumpError::TooLong)) {
        return settle(pumped, converter, limits);
    }
    match fed {
        Err(PumpError::Input(error)) => return Err(LayerError::from_read(error)),
        Err(PumpError::Fault(fault)) => return Err(fault.into()),
        Ok(()) | Err(PumpError::Closed | PumpError::TooLong) => {}
    }
    match said? {
        Answer::Decompressed => settle(pumped, converter, limits),
        Answer::Converted(_) => Err(WorkerFault::Answer("it decompressed nothing").into()),
        Answer::Refused(refusal) => Err(refusal.try_into()?),
        Answer::NoJail(reason) => Err(WorkerFault::Jail(shown(&reason)).into()),
    }
}

/// Makes a pipe as long as a chunk; it works with any size.
pub(super) fn enlarge(pipe: impl AsFd) {
    if let Err(error) = fcntl_setpipe_size(pipe, PIPE_BYTES) {
        tracing::debug!(%error, "a pipe to a conversion worker keeps its size");
    }
}

fn settle(pumped: Result<Digest, PumpError>, converter: &mut Worker, limits: &Limits) -> Result<Digest, LayerError> {
    match pumped {
        Ok(digest) => Ok(digest),
        Err(PumpError::Input(error)) => Err(LayerError::from_read(error)),
        Err(PumpError::TooLong) => Err(LayerError::Refused(StreamRefusal::TooLong { limit: limits.layer_bytes })),
        Err(PumpError::Fault(fault)) => Err(fault.into()),
        Err(PumpError::Closed) => match converter.answer()? {
            Answer::Refused(refusal) => Err(refusal.try_into()?),
            Answer::NoJail(reason) => Err(WorkerFault::Jail(shown(&reason)).into()),
            Answer::Converted(_) | Answer::Decompressed => {
                Err(WorkerFault::Answer("it was done before its input was").into())
            }
        },
    }
}

/// Hands a tar stream on, counts and hashes it.
fn pump(mut input: impl Read, mut feed: Feed, limits: &Limits) -> Result<Digest, PumpError> {
    let mut buffer = vec![0; CHUNK];
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    loop {
        let count = read(&mut input, &mut buffer)?;
        if count == 0 {
            return Ok(Digest::from_sha256(&hash.finalize().into()));
        }
        bytes += count as u64;
        if bytes > limits.layer_bytes {
            return Err(PumpError::TooLong);
        }
        // First the worker, which then computes beside us.
        feed.write_all(&buffer[..count])?;
        hash.update(&buffer[..count]);
    }
}

fn copy(input: &mut impl Read, mut feed: Feed) -> Result<(), PumpError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match read(input, &mut buffer)? {
            0 => return Ok(()),
            count => feed.write_all(&buffer[..count])?,
        }
    }
}

fn read(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, PumpError> {
    loop {
        match input.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PumpError::Input(error)),
        }
    }
}
