//! The protocol by which a container's files are read and written: one connection for one operation, between the engine and
//! whoever has the files before it (a helper process on the host, or the guest compute service).
//!
//! ```text
//!   engine                                     files
//!     ── Message: FilesRequest ────────────────▶
//!     ◀──────────────── Message: FilesOpened ───   (the trees are open, whatever becomes of the container)
//!     ── Data * , End (Write, Place) ──────────▶
//!     ◀──────────────── Message: PathStat ──────   (Stat, Read)
//!     ◀──────────────── Data * ─────────────────   (Read, Export, Layer: a tar stream; Changes: a JSON object a line)
//!     ◀──────────────── End: how it went ───────
//! ```
//!
//! A stream without its End is broken, whatever came before: nobody takes a part for the whole. Everything that comes back is
//! as hostile as the container is, and bounded.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{ErrorKind, Status};

/// Most bytes in one frame.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Bytes of data that are put into one frame.
const CHUNK_BYTES: usize = 128 << 10;
/// Kind and length, big endian.
const HEADER_BYTES: usize = 5;

/// What is to be done with a container's files. Paths are the container's, absolute or not, with or without a trailing
/// slash or `/.`, as `docker cp` gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case", deny_unknown_fields)]
pub enum FilesRequest {
    /// What is at a path: a [`PathStat`].
    Stat {
        /// The path.
        path: String,
        /// What is mounted in the container.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<FilesMount>,
    },
    /// A file or a folder with everything in it: a [`PathStat`], then a tar stream.
    Read {
        /// The path.
        path: String,
        /// As for [`FilesRequest::Stat`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<FilesMount>,
    },
    /// Unpacks a tar stream into a folder that is there.
    Write {
        /// The folder.
        path: String,
        /// A folder is not replaced by something else, nor something else by a folder.
        keep_kinds: bool,
        /// Only what is mounted in the container may be written to.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        root_read_only: bool,
        /// As for [`FilesRequest::Stat`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<FilesMount>,
    },
    /// Unpacks a tar stream as `COPY` of a Dockerfile places it. What is missing of the way there is made, mode 0755.
    Place {
        /// Where to. Links in it are followed.
        path: String,
        /// It is a folder, made if it is missing, and takes the entries. Otherwise the stream has one entry, which goes into the
        /// folder that is there, or becomes what the path names.
        folder: bool,
        /// `USER:GROUP` in the container's own names or numbers: owner of all that is made, whatever the stream says.
        owner: Option<String>,
    },
    /// The whole root as a tar stream.
    Export,
    /// What the container has changed, a [`ChangeLine`] a line.
    Changes {
        /// Paths that the engine, and not the container, has made.
        own: Vec<String>,
    },
    /// What the container has changed, as an OCI layer's tar stream.
    Layer {
        /// Paths that the engine, and not the container, has made.
        own: Vec<String>,
        /// The container's processes stand still meanwhile. Only for a guest: on the host the shim sees to that.
        freeze: bool,
    },
}

/// Says that the container's trees are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesOpened {}

/// A bind or a volume of a container, or a file that tells it names, such as `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesMount {
    /// In the container, absolute.
    pub destination: PathBuf,
    /// On the host. A guest is not told, and knows what it has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<FilesSource>,
    /// What is in it: a small file of a container that does not run, for a guest, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Where a mount is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSource {
    /// The folder or file.
    pub path: PathBuf,
    /// Only this part of it, which is looked up following no link.
    pub part: Option<PathBuf>,
    /// Nothing is written to it.
    pub read_only: bool,
    /// With what is mounted below it.
    pub recursive: bool,
}

impl FilesRequest {
    /// What is mounted in the container for the one who asks.
    #[must_use]
    pub fn mounts(&self) -> &[FilesMount] {
        match self {
            Self::Stat { mounts, .. } | Self::Read { mounts, .. } | Self::Write { mounts, .. } => mounts,
            Self::Place { .. } | Self::Export | Self::Changes { .. } | Self::Layer { .. } => &[],
        }
    }

    /// Says what is mounted in the container. For a request that does not ask for it, nothing changes.
    pub fn set_mounts(&mut self, now: Vec<FilesMount>) {
        match self {
            Self::Stat { mounts, .. } | Self::Read { mounts, .. } | Self::Write { mounts, .. } => *mounts = now,
            Self::Place { .. } | Self::Export | Self::Changes { .. } | Self::Layer { .. } => {}
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// The path's last part as it was asked for.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Go's `os.FileMode`. Source: Go, package io/fs.
    pub mode: u32,
    /// Seconds since the epoch.
    pub modified_seconds: i64,
    /// And the part of a second, nanoseconds.
    pub modified_nanoseconds: u32,
    /// Where a symbolic link leads to in the container; empty for everything else.
    pub link_target: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLine {
    /// Docker's number for it: 0 changed, 1 added, 2 deleted.
    pub kind: u8,
    /// Where, from the root.
    pub path: String,
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Message(Vec<u8>),
    Data(Vec<u8>),
    End(Vec<u8>),
}

/// The sending half of a connection.
#[derive(Debug)]
pub struct FrameSender<W: Write> {
    to: W,
    /// Data that waits for more.
    buffer: Vec<u8>,
}

impl<W: Write> FrameSender<W> {
    /// Over a connection.
    pub fn new(to: W) -> Self {
        Self { to, buffer: Vec::new() }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn message(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.flush_data()?;
        let bytes = serde_json::to_vec(message)?;
        self.frame(1, &bytes)?;
        self.to.flush()
    }

    /// Ends the stream: all of it was sent, or it failed.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn end(&mut self, outcome: &Result<(), Status>) -> io::Result<()> {
        if outcome.is_ok() {
            self.flush_data()?;
        }
        let bytes = serde_json::to_vec(&outcome.as_ref().err())?;
        self.frame(3, &bytes)?;
        self.to.flush()
    }

    fn flush_data(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        if !buffer.is_empty() {
            self.frame(2, &buffer)?;
        }
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME_BYTES);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame is too long"))?;
        let mut header = [kind; HEADER_BYTES];
        header[1..].copy_from_slice(&length.to_be_bytes());
        self.to.write_all(&header)?;
        self.to.write_all(payload)
    }
}

/// Data.
impl<W: Write> Write for FrameSender<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush_data()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_data()?;
        self.to.flush()
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct FrameReceiver<R: Read> {
    from: R,
    /// Data that was received and not read.
    data: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl<R: Read> FrameReceiver<R> {
    /// Over a connection.
    pub fn new(from: R) -> Self {
        Self { from, data: io::Cursor::default(), ended: false }
    }

    /// Receives a message.
    ///
    /// # Errors
    /// What the other side ended with instead, as a [`Status`] in the error (see [`status_of`]); a broken connection.
    pub fn message<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        match self.frame()? {
            Frame::Message(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Frame::End(bytes) => {
                self.ended = true;
                Err(outcome(&bytes)?.err().map_or_else(|| unexpected("an end"), io::Error::other))
            }
            Frame::Data(_) => Err(unexpected("data")),
        }
    }

    fn frame(&mut self) -> io::Result<Frame> {
        let mut header = [0; HEADER_BYTES];
        self.from.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
        }
        // The last data was read: its room serves again.
        let mut payload = std::mem::take(&mut self.data).into_inner();
        payload.resize(length, 0);
        self.from.read_exact(&mut payload)?;
        match kind {
            1 => Ok(Frame::Message(payload)),
            2 => Ok(Frame::Data(payload)),
            3 => Ok(Frame::End(payload)),
            _ => Err(unexpected("a frame of no known kind")),
        }
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} came out of turn"))
}

fn outcome(bytes: &[u8]) -> io::Result<Result<(), Status>> {
    let failed: Option<Status> = serde_json::from_slice(bytes)?;
    Ok(failed.map_or(Ok(()), Err))
}

/// Data, up to an End that tells of success.
impl<R: Read> Read for FrameReceiver<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.data.read(buffer)?;
            if count > 0 || self.ended || buffer.is_empty() {
                return Ok(count);
            }
            match self.frame()? {
                Frame::Data(bytes) => self.data = io::Cursor::new(bytes),
                Frame::End(bytes) => {
                    self.ended = true;
                    outcome(&bytes)?.map_err(io::Error::other)?;
                }
                Frame::Message(_) => return Err(unexpected("a message")),
            }
        }
    }
}

/// The other side's own words in an error of [`FrameReceiver`], or the error's as a fault of the connection.
#[must_use]
pub fn status_of(error: &io::Error) -> Status {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Status>()) {
        Some(status) => status.clone(),
        None => Status {
            kind: ErrorKind::Unavailable,
            message: "the connection to the container's files broke".to_owned(),
            causes: vec![error.to_string()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(send: impl FnOnce(&mut FrameSender<&mut Vec<u8>>) -> io::Result<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut FrameSender::new(&mut bytes)).unwrap();
        bytes
    }

    #[test]
    fn what_is_sent_is_received() {
        let request =
            FilesRequest::Write { path: "/a".into(), keep_kinds: true, root_read_only: false, mounts: Vec::new() };
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let bytes = sent(|sender| {
            sender.message(&request)?;
            sender.write_all(&content)?;
            sender.end(&Ok(()))
        });
        let mut receiver = FrameReceiver::new(&bytes[..]);
        assert_eq!(receiver.message::<FilesRequest>().unwrap(), request);
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        assert_eq!(received, content);
    }

    #[test]
    fn a_stream_without_its_end_is_broken() {
        let bytes = sent(|sender| {
            sender.write_all(b"abc")?;
            sender.flush()
        });
        assert!(FrameReceiver::new(&bytes[..]).read_to_end(&mut Vec::new()).is_err());
        let failed = Status::new(ErrorKind::NotFound, "not there");
        let bytes = sent(|sender| {
            sender.write_all(b"abc")?;
            sender.end(&Err(failed.clone()))
        });
        let error = FrameReceiver::new(&bytes[..]).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(status_of(&error), failed);
        let error = FrameReceiver::new(&bytes[..]).message::<PathStat>().unwrap_err();
        assert_eq!(status_of(&error), failed);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[2, 0xff, 0, 0, 0][..], &[9, 0, 0, 0, 0], &[1, 0, 0, 0, 1, b'{'], &[3, 0, 0, 0, 0]] {
            assert!(FrameReceiver::new(bytes).message::<PathStat>().is_err(), "{bytes:?}");
            assert!(FrameReceiver::new(bytes).read_to_end(&mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
