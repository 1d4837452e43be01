//! What an engine and its workers say to each other: one order with descriptors, one digest, one answer, each a packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::compression::StreamRefusal;
use crate::convert::LayerError;
use crate::limits::Limits;
use crate::tar::TarError;
use crate::tree::EntryFault;
use crate::worker_fault::WorkerFault;

/// Bytes of an answer; the longest true one has a path of 200 characters.
pub(super) const MAX_ANSWER: usize = 8 << 10;
const MAX_ORDER: usize = 4 << 10;
/// Characters of a text from a worker that are shown.
const MAX_TEXT: usize = 300;
/// Descriptors that come with an order: input, output.
const DESCRIPTORS: usize = 2;

/// What a worker is to do with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Job {
    /// Undo its compression; output is a pipe.
    Decompress,
    /// Read it as a tar stream; output is the EROFS file, empty.
    Convert,
}

/// With it come the descriptors of input and output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub job: Job,
    pub limits: Limits,
    /// The process that the worker must not outlive.
    pub parent: u32,
}

/// What a worker says last.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Decompressed,
    Converted(Facts),
    Refused(Refusal),
    NoJail(String),
}

/// See [`crate::convert::Converted`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub content_bytes: u64,
    pub entries: u64,
    pub file_bytes: u64,
    pub root_opaque: bool,
}

/// A [`LayerError`] on the wire.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    Tar(String),
    Read(String),
    ExtensionTooLarge { bytes: u64 },
    TrailingData,
    TooLong { limit: u64 },
    Bomb { input: u64, output: u64 },
    Entry { path: String, fault: EntryFault },
    TooManyEntries { limit: u64 },
    TooLarge,
    Write { errno: Option<i32>, text: String },
}

impl From<LayerError> for Refusal {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Tar(TarError::Read(error)) => Self::Read(error.to_string()),
            LayerError::Tar(TarError::Header(text)) => Self::Tar(text.to_owned()),
            LayerError::Tar(TarError::Reported(text)) => Self::Tar(text),
            LayerError::Tar(TarError::ExtensionTooLarge { bytes }) => Self::ExtensionTooLarge { bytes },
            LayerError::Tar(TarError::TrailingData) => Self::TrailingData,
            LayerError::Refused(StreamRefusal::TooLong { limit }) => Self::TooLong { limit },
            LayerError::Refused(StreamRefusal::Bomb { input, output }) => Self::Bomb { input, output },
            LayerError::Entry { path, fault } => Self::Entry { path, fault },
            LayerError::TooManyEntries { limit } => Self::TooManyEntries { limit },
            LayerError::TooLarge => Self::TooLarge,
            LayerError::Write(error) => Self::Write { errno: error.raw_os_error(), text: error.to_string() },
            // Found out before a worker is started, and by its parent.
            LayerError::Refused(StreamRefusal::Unsupported { .. }) | LayerError::Worker(_) => {
                Self::Read(error.to_string())
            }
        }
    }
}

impl TryFrom<Refusal> for LayerError {
    type Error = WorkerFault;

    fn try_from(refusal: Refusal) -> Result<Self, WorkerFault> {
        Ok(match refusal {
            Refusal::Tar(text) => Self::Tar(TarError::Reported(shown(&text))),
            Refusal::Read(text) => Self::Tar(TarError::Read(io::Error::new(io::ErrorKind::InvalidData, shown(&text)))),
            Refusal::ExtensionTooLarge { bytes } => Self::Tar(TarError::ExtensionTooLarge { bytes }),
            Refusal::TrailingData => Self::Tar(TarError::TrailingData),
            Refusal::TooLong { limit } => Self::Refused(StreamRefusal::TooLong { limit }),
            Refusal::Bomb { input, output } => Self::Refused(StreamRefusal::Bomb { input, output }),
            Refusal::Entry { path, fault } => Self::Entry { path: path.chars().take(200).collect(), fault },
            Refusal::TooManyEntries { limit } => Self::TooManyEntries { limit },
            Refusal::TooLarge => Self::TooLarge,
            Refusal::Write { errno: Some(errno), .. } if (1..4096).contains(&errno) => {
                Self::Write(io::Error::from_raw_os_error(errno))
            }
            Refusal::Write { errno: None, text } => Self::Write(io::Error::other(shown(&text))),
            Refusal::Write { .. } => return Err(WorkerFault::Answer("there is no such error")),
        })
    }
}

/// A worker's text as it may be shown: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// Sends an order with its descriptors.
pub(super) fn send_order(socket: impl AsFd, order: &Order, fds: &[BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
    let body = serde_json::to_vec(order)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    let sent = retry_on_intr(|| sendmsg(socket.as_fd(), &[IoSlice::new(&body)], &mut control, SendFlags::NOSIGNAL))?;
    if sent == body.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Waits for an order; gives the descriptors of input and output with it.
pub(super) fn receive_order(socket: impl AsFd) -> io::Result<(Order, OwnedFd, OwnedFd)> {
    let mut body = [0; MAX_ORDER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut body)];
    let bytes = retry_on_intr(|| recvmsg(socket.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC))?.bytes;
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    match (fds.next(), fds.next()) {
        (Some(input), Some(output)) => Ok((serde_json::from_slice(&body[..bytes])?, input, output)),
        _ => Err(io::Error::other("an order without descriptors")),
    }
}
