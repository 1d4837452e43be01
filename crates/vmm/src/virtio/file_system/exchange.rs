//! One request on its way to the server and back, in pieces as the socket takes and gives them.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::virtio::buffers::Request;
use crate::virtio::queue::QueueError;

/// The shortest request, a header. Source: `struct fuse_in_header`.
const HEADER_BYTES: usize = 40;
/// The shortest answer, a header. Source: `struct fuse_out_header`.
const ANSWER_BYTES: usize = 16;
/// The longest of either: what is written or read at once, 1 MiB, and headers.
const MOST_BYTES: usize = (1 << 20) + 4096;

/// The way to the server, and what is on it.
#[derive(Debug)]
pub(super) struct Exchange {
    socket: OwnedFd,
    /// The server is gone, or said what is no answer.
    gone: bool,
    stage: Stage,
    /// Nobody waits for it any more: the driver began anew.
    abandoned: bool,
}

#[derive(Debug)]
enum Stage {
    Idle,
    /// So much of the request is sent.
    Sending {
        asked: Asked,
        message: Vec<u8>,
        sent: usize,
    },
    /// So much of the answer is there.
    Receiving {
        asked: Asked,
        answer: Vec<u8>,
        received: usize,
    },
    /// It is all there.
    Answered {
        asked: Asked,
        answer: Vec<u8>,
    },
}

/// What is known of a request.
#[derive(Debug, Clone, Copy)]
struct Asked {
    queue: usize,
    /// The kernel's number for it, at the same place in request and answer.
    unique: [u8; 8],
    /// It has room for an answer, so one is expected.
    waits: bool,
}

impl Exchange {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, gone: false, stage: Stage::Idle, abandoned: false }
    }

    /// True when a request may begin.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Takes a request. When: idle.
    ///
    /// # Errors
    /// [`QueueError::Incomplete`] when it is none: too short, too long, or not as long as it says; the server, which takes one behind
    /// the other out of a stream, would take it for several.
    pub(super) fn begin(&mut self, queue: usize, request: &mut Request<'_>) -> Result<(), QueueError> {
        let bytes = request.readable.bytes();
        if !(HEADER_BYTES..=MOST_BYTES).contains(&bytes) {
            return Err(QueueError::Incomplete);
        }
        let room = request.writable.bytes();
        if room > 0 && room < ANSWER_BYTES {
            return Err(QueueError::Incomplete);
        }
        let mut message = vec![0; bytes];
        request.readable.read(&mut message);
        let said = message.first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
        if usize::try_from(said) != Ok(bytes) {
            return Err(QueueError::Incomplete);
        }
        let mut unique = [0; 8];
        unique.copy_from_slice(&message[8..16]);
        self.stage = Stage::Sending { asked: Asked { queue, unique, waits: room > 0 }, message, sent: 0 };
        Ok(())
    }

    /// Goes on as far as the socket lets it.
    pub(super) fn go_on(&mut self) {
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Idle);
            let (next, more) = self.step(stage);
            self.stage = next;
            if !more {
                break;
            }
        }
        if self.abandoned && matches!(self.stage, Stage::Idle | Stage::Answered { .. }) {
            (self.stage, self.abandoned) = (Stage::Idle, false);
        }
    }

    /// The answer to what came from this queue, once; empty for what has none.
    pub(super) fn take_answer(&mut self, queue: usize) -> Option<Vec<u8>> {
        match &mut self.stage {
            Stage::Answered { asked, answer } if asked.queue == queue => {
                let answer = std::mem::take(answer);
                self.stage = Stage::Idle;
                Some(answer)
            }
            _ => None,
        }
    }

    /// Nobody waits for what is on its way. What the server has begun to take it must take, and its answer is dropped.
    pub(super) fn abandon(&mut self) {
        match &self.stage {
            Stage::Idle | Stage::Answered { .. } | Stage::Sending { sent: 0, .. } => self.stage = Stage::Idle,
            Stage::Sending { .. } | Stage::Receiving { .. } => self.abandoned = true,
        }
    }

    /// The next stage, and whether it may be gone on with at once.
    fn step(&mut self, stage: Stage) -> (Stage, bool) {
        match stage {
            Stage::Sending { asked, .. } | Stage::Receiving { asked, .. } if self.gone => (asked.unserved(), false),
            Stage::Sending { asked, message, sent } => {
                match send(&self.socket, &message[sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(count) if sent + count == message.len() => (asked.sent(), asked.waits),
                    Ok(count) => (Stage::Sending { asked, message, sent: sent + count }, true),
                    Err(error) => self.stopped(error, Stage::Sending { asked, message, sent }),
                }
            }
            Stage::Receiving { asked, mut answer, received } => {
                match recv(&self.socket, &mut answer[received..], RecvFlags::DONTWAIT) {
                    Ok((0, _)) => self.stopped(Errno::CONNRESET, Stage::Receiving { asked, answer, received }),
                    Ok((count, _)) => self.received(asked, answer, received + count),
                    Err(error) => self.stopped(error, Stage::Receiving { asked, answer, received }),
                }
            }
            Stage::Idle | Stage::Answered { .. } => (stage, false),
        }
    }

    /// Its length comes first, and then as much as that says.
    fn received(&mut self, asked: Asked, mut answer: Vec<u8>, received: usize) -> (Stage, bool) {
        if received < answer.len() {
            return (Stage::Receiving { asked, answer, received }, true);
        }
        let said = answer.first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
        let bytes = usize::try_from(said).unwrap_or(usize::MAX);
        if received == ANSWER_BYTES && bytes > ANSWER_BYTES && bytes <= MOST_BYTES {
            answer.resize(bytes, 0);
            return (Stage::Receiving { asked, answer, received }, true);
        }
        if received != bytes || answer[8..ANSWER_BYTES] != asked.unique {
            // Where the next answer begins nobody knows.
            self.gone = true;
            return (asked.unserved(), false);
        }
        (Stage::Answered { asked, answer }, false)
    }

    fn stopped(&mut self, error: Errno, stage: Stage) -> (Stage, bool) {
        match error {
            Errno::AGAIN => (stage, false),
            Errno::INTR => (stage, true),
            _ => {
                self.gone = true;
                (stage, true)
            }
        }
    }
}

impl Asked {
    /// What follows when all of it is sent.
    fn sent(self) -> Stage {
        if self.waits {
            Stage::Receiving { asked: self, answer: vec![0; ANSWER_BYTES], received: 0 }
        } else {
            Stage::Answered { asked: self, answer: Vec::new() }
        }
    }

    /// The answer when there is no server any more: not connected.
    fn unserved(self) -> Stage {
        if !self.waits {
            return Stage::Answered { asked: self, answer: Vec::new() };
        }
        let length = u32::try_from(ANSWER_BYTES).unwrap_or(0).to_le_bytes();
        let answer = [&length[..], &(-libc::ENOTCONN).to_le_bytes(), &self.unique].concat();
        Stage::Answered { asked: self, answer }
    }
}
