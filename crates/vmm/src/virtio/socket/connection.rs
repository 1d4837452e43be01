//! One connection: what either side may still send, and what waits.
//!
//! What the guest sends waits here while the host's stream is full, at most [`ROOM`] bytes, which is what the guest was told. What the
//! host sends waits in its stream until the guest has room.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::packet::{Header, Key, NO_RECEIVE, NO_SEND, Operation};
use crate::virtio::buffers::Buffers;

/// Bytes of the guest's that are kept for a stream that takes none now.
pub(super) const ROOM: usize = 64 * 1024;
/// So much more room than the guest knows of is told without being asked.
const TOLD_AT: u32 = 16 * 1024;
/// Bytes to the guest in one packet at most.
pub(super) const CHUNK: usize = 16 * 1024;

/// The host's end of a connection, watched by the device.
#[derive(Debug)]
pub(super) struct Stream {
    socket: OwnedFd,
    watch: Arc<OwnedFd>,
}

impl Stream {
    /// Watches a stream; its events have the key's number.
    pub(super) fn watched(socket: OwnedFd, watch: &Arc<OwnedFd>, key: Key) -> io::Result<Self> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(watch, &socket, EventData::new_u64(key.number()), flags)?;
        Ok(Self { socket, watch: Arc::clone(watch) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Who gave it may have it still, so to close it would not be enough. What is not watched needs no end.
        let _ = epoll::delete(&self.watch, &self.socket);
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest asked for it; the host looks for who listens, by this number.
    Asked(u32),
    /// The host asked for it; the guest has not answered.
    Offered,
    /// Both sides have it.
    Open,
    /// It is over, and the guest is still to be told.
    Over,
}

/// What is to be said as soon as the guest has room for it.
#[derive(Debug, Default, Clone, Copy)]
struct Says {
    request: bool,
    response: bool,
    credit: bool,
    credit_request: bool,
    /// [`NO_RECEIVE`], [`NO_SEND`].
    shutdown: u32,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    phase: Phase,
    stream: Option<Stream>,
    says: Says,
    /// The stream may have something to read; may have room.
    readable: bool,
    writable: bool,
    /// Who still sends, and who still receives.
    host_sends: bool,
    host_receives: bool,
    guest_sends: bool,
    guest_receives: bool,
    /// The stream's side knows that the guest sends no more.
    end_passed: bool,
    /// What the guest says of its room; never believed beyond what was sent.
    guest_room: u32,
    guest_passed: u32,
    /// Bytes that were sent to the guest.
    sent: u32,
    /// It was asked for room, and has not answered.
    room_asked: bool,
    /// What the stream does not take yet; the first `greeting` bytes of it are ours, not the guest's.
    waiting: Vec<u8>,
    greeting: usize,
    /// The guest's bytes that the stream took, and how many of those it knows of.
    passed: u32,
    told: u32,
}

impl Connection {
    /// One that the guest asks for.
    pub(super) fn asked(key: Key, number: u32) -> Self {
        Self::new(key, Phase::Asked(number), None, Says::default())
    }

    /// One that a program of the host asks for.
    pub(super) fn offered(key: Key, stream: Stream) -> Self {
        Self::new(key, Phase::Offered, Some(stream), Says { request: true, ..Says::default() })
    }

    fn new(key: Key, phase: Phase, stream: Option<Stream>, says: Says) -> Self {
        Self {
            key,
            phase,
            stream,
            says,
            readable: true,
            writable: true,
            host_sends: true,
            host_receives: true,
            guest_sends: true,
            guest_receives: true,
            end_passed: false,
            guest_room: 0,
            guest_passed: 0,
            sent: 0,
            room_asked: false,
            waiting: Vec::new(),
            greeting: 0,
            passed: 0,
            told: 0,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Somebody of the host's listens, and this is his stream.
    pub(super) fn accept(&mut self, stream: Stream) {
        self.stream = Some(stream);
        self.phase = Phase::Open;
        self.says.response = true;
    }

    /// Ends it; the guest is told when it has room.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Over;
        self.stream = None;
        self.waiting = Vec::new();
    }

    /// The stream has something to read, or room, or was closed.
    pub(super) fn stream_ready(&mut self, flags: EventFlags) {
        self.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
        if flags.contains(EventFlags::HUP) {
            if self.phase == Phase::Offered {
                // Nobody waits for the answer any more.
                return self.end();
            }
            self.host_leaves();
        }
        self.pass_on();
    }

    /// The guest says this. Shape: `data` is what is behind the header.
    pub(super) fn hear(&mut self, header: &Header, data: &mut Buffers<'_>) {
        if self.phase == Phase::Over {
            return;
        }
        (self.guest_room, self.guest_passed, self.room_asked) = (header.room, header.passed, false);
        let is_open = self.phase == Phase::Open;
        match header.operation {
            Operation::Response if self.phase == Phase::Offered => self.open(),
            Operation::Data if is_open => self.take(header.length, data),
            Operation::Shutdown if is_open => self.guest_ends(header.flags),
            Operation::Credit => {}
            Operation::CreditRequest => self.says.credit = true,
            // What cannot be now.
            _ => self.end(),
        }
    }

    /// The guest has answered: the host's program learns its own port, as Firecracker tells it.
    fn open(&mut self) {
        self.phase = Phase::Open;
        self.waiting = format!("OK {}\n", self.key.host).into_bytes();
        self.greeting = self.waiting.len();
        self.pass_on();
    }

    /// Takes data of the guest. More than it was told that there is room for ends the connection.
    fn take(&mut self, length: u32, data: &mut Buffers<'_>) {
        let count = usize::try_from(length).unwrap_or(usize::MAX);
        let kept = self.waiting.len() - self.greeting;
        if !self.guest_sends || count > data.bytes() || count > ROOM - kept.min(ROOM) {
            return self.end();
        }
        if self.host_receives {
            let begin = self.waiting.len();
            self.waiting.resize(begin + count, 0);
            data.read(&mut self.waiting[begin..]);
        } else {
            self.passed = self.passed.wrapping_add(length);
        }
        self.pass_on();
    }

    fn guest_ends(&mut self, flags: u32) {
        self.guest_sends &= flags & NO_SEND == 0;
        self.guest_receives &= flags & NO_RECEIVE == 0;
        if !self.guest_receives
            && let Some(stream) = &self.stream
        {
            // One that is closed already needs it no more.
            let _ = shutdown(&stream.socket, Shutdown::Read);
        }
        self.pass_on();
    }

    /// Nobody of the host's receives any more.
    fn host_leaves(&mut self) {
        if self.host_receives {
            self.host_receives = false;
            self.says.shutdown |= NO_RECEIVE;
            self.passed = self.passed.wrapping_add(u32::try_from(self.waiting.len() - self.greeting).unwrap_or(0));
            (self.waiting, self.greeting) = (Vec::new(), 0);
        }
    }

    /// Gives the stream what waits for it, as much as it takes.
    fn pass_on(&mut self) {
        while self.writable && self.host_receives && !self.waiting.is_empty() {
            let Some(stream) = &self.stream else { return };
            match send(&stream.socket, &self.waiting, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    let ours = count.min(self.greeting);
                    self.greeting -= ours;
                    self.passed = self.passed.wrapping_add(u32::try_from(count - ours).unwrap_or(0));
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => self.host_leaves(),
            }
        }
        self.says.credit |= self.passed.wrapping_sub(self.told) >= TOLD_AT;
        if self.phase == Phase::Open && self.waiting.is_empty() && !self.guest_sends {
            if !self.guest_receives {
                // The guest has closed it, and waits for this answer.
                self.end();
            } else if let Some(stream) = self.stream.as_ref().filter(|_| !self.end_passed) {
                self.end_passed = true;
                let _ = shutdown(&stream.socket, Shutdown::Write);
            }
        }
    }

    /// The next packet to the guest, if there is one: its header and how many bytes of `chunk` are its data. After a reset the
    /// connection is no more.
    pub(super) fn next(&mut self, chunk: &mut [u8]) -> Option<(Header, usize)> {
        if self.phase == Phase::Over {
            return Some((Header::to_guest(self.key, Operation::Reset), 0));
        }
        let says = &mut self.says;
        let (operation, flags, count) = if std::mem::take(&mut says.request) {
            (Operation::Request, 0, 0)
        } else if std::mem::take(&mut says.response) {
            (Operation::Response, 0, 0)
        } else if self.phase != Phase::Open {
            return None;
        } else if let Some(count) = self.data(chunk) {
            (Operation::Data, 0, count)
        } else if self.says.shutdown != 0 {
            (Operation::Shutdown, std::mem::take(&mut self.says.shutdown), 0)
        } else if std::mem::take(&mut self.says.credit) {
            (Operation::Credit, 0, 0)
        } else if std::mem::take(&mut self.says.credit_request) {
            (Operation::CreditRequest, 0, 0)
        } else {
            return None;
        };
        // Every packet says how much room there is.
        (self.told, self.says.credit) = (self.passed, false);
        let length = u32::try_from(count).unwrap_or(0);
        self.sent = self.sent.wrapping_add(length);
        let room = u32::try_from(ROOM).unwrap_or(0);
        let header = Header::to_guest(self.key, operation);
        Some((Header { length, flags, room, passed: self.passed, ..header }, count))
    }

    /// Reads what the guest has room for.
    fn data(&mut self, chunk: &mut [u8]) -> Option<usize> {
        while self.readable && self.host_sends && self.guest_receives {
            // One that says that it has got more than was sent has no room.
            let room = self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_passed));
            if room == 0 {
                self.says.credit_request |= !std::mem::replace(&mut self.room_asked, true);
                return None;
            }
            let most = chunk.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            match recv(&self.stream.as_ref()?.socket, &mut chunk[..most], RecvFlags::DONTWAIT) {
                Ok((count, _)) if count > 0 => return Some(count),
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Ok(_) => {
                    self.host_sends = false;
                    self.says.shutdown |= NO_SEND;
                }
                Err(_) => {
                    self.host_sends = false;
                    self.says.shutdown |= NO_SEND;
                    self.host_leaves();
                }
            }
        }
        None
    }

    /// Bytes that are kept of the guest's.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.waiting.len() - self.greeting
    }
}
