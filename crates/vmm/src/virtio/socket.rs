//! The socket device: streams between programs of the guest and programs of the host, without a network. The host's numbers are its
//! own: each connection is a stream that came over one socket from whoever made the machine, since this process may neither open, nor
//! connect, nor accept. No driver is bound to it but in a container that asks for it.
//!
//! ```text
//! host asks:   Connect(port) + stream ─▶ REQUEST ─▶ guest; RESPONSE ─▶ "OK <port>\n" on the stream; RST ─▶ it is closed
//! guest asks:  REQUEST ─▶ Wanted(port, number) ─▶ host; Answer(number) + stream ─▶ RESPONSE, without a stream ─▶ RST
//! ```
//!
//! What a guest can make grow is bounded: [`MOST`] connections with [`connection::ROOM`] bytes each, and [`MOST_STRAYS`] answers to
//! packets of no connection. Where these wait for buffers, the guest's packets wait in its queue.
//!
//! Source: virtio 1.2 §5.10, "Socket Device"; the host's side: Firecracker docs/vsock.md.

mod connection;
mod packet;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use self::connection::{CHUNK, Connection, Phase, Stream};
use self::packet::{GUEST, HEADER_BYTES, Header, Key, Operation};
use super::buffers::Buffers;
use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};
use crate::protocol::socket::{FromDevice, ToDevice};
use crate::protocol::{receive, send};

/// Packets to the guest.
const RECEIVE: usize = 0;
/// Packets from the guest.
const TRANSMIT: usize = 1;
/// Connections at a time.
const MOST: usize = 128;
/// Answers to packets of no connection that wait for the guest's buffers.
const MOST_STRAYS: usize = 32;
/// The host's own ports begin here, as Firecracker's do.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// What is no key's number: the host's socket.
const HOST_SOCKET: u64 = u64::MAX;
/// Events that are looked at at once.
const EVENTS: usize = 32;

/// The device, and the way to the host's programs.
#[derive(Debug)]
pub(crate) struct Socket {
    host: OwnedFd,
    /// The host has said something, or may have.
    host_speaks: bool,
    /// Watches that socket and every stream.
    watch: Arc<OwnedFd>,
    connections: BTreeMap<Key, Connection>,
    /// Who was served last.
    last: Key,
    strays: VecDeque<Header>,
    next_number: u32,
    next_port: u32,
    /// Empty until there is something to send.
    chunk: Vec<u8>,
}

impl Socket {
    /// A device whose host is at the other end of `host`, a socket of type SEQPACKET that does not block.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub(crate) fn new(host: OwnedFd) -> io::Result<Self> {
        let watch = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        epoll::add(&watch, &host, EventData::new_u64(HOST_SOCKET), EventFlags::IN | EventFlags::ET)?;
        let (connections, strays) = (BTreeMap::new(), VecDeque::new());
        Ok(Self {
            host,
            host_speaks: true,
            watch,
            connections,
            last: Key { guest: 0, host: 0 },
            strays,
            next_number: 0,
            next_port: FIRST_HOST_PORT,
            chunk: Vec::new(),
        })
    }

    /// What is ready when the host's socket or a stream is.
    pub(crate) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Goes on with everything, as far as host and guest let it.
    pub(crate) fn go_on(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.look_at_host();
        loop {
            let waits = self.hear_guest(queues)?;
            let told = self.tell_guest(queues)?;
            if !waits || !told {
                return Ok(());
            }
        }
    }

    /// Takes what has happened on the host's side.
    fn look_at_host(&mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            let now = Timespec::default();
            let found = epoll::wait(&self.watch, rustix::buffer::spare_capacity(&mut events), Some(&now));
            for event in &events {
                match event.data.u64() {
                    HOST_SOCKET => self.host_speaks = true,
                    number => {
                        if let Some(connection) = self.connections.get_mut(&Key::of(number)) {
                            connection.stream_ready(event.flags);
                        }
                    }
                }
            }
            // Interrupted, or failed: what was not seen is there at the next turn.
            if found.is_err() || events.len() < EVENTS {
                break;
            }
        }
        while self.host_speaks {
            match receive::<ToDevice>(&self.host) {
                Ok(Some((message, streams))) => self.hear_host(&message, streams.into_iter().next()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more now; or the host is gone, and nothing more ever.
                Ok(None) | Err(_) => self.host_speaks = false,
            }
        }
    }

    fn hear_host(&mut self, message: &ToDevice, stream: Option<OwnedFd>) {
        match (message, stream) {
            // Without room for it, or without a way to watch it, the stream is closed, which is the answer.
            (ToDevice::Connect { port }, Some(stream)) if self.connections.len() < MOST => {
                let key = Key { guest: *port, host: self.host_port(*port) };
                if let Some(stream) = self.watched(key, stream).filter(|_| key.is_possible()) {
                    self.connections.insert(key, Connection::offered(key, stream));
                }
            }
            (ToDevice::Connect { .. }, _) => {}
            (ToDevice::Answer { number }, stream) => {
                let asked = Phase::Asked(*number);
                let found = self.connections.iter().find(|(_, connection)| connection.phase() == asked);
                // The guest may have given it up meanwhile.
                let Some(key) = found.map(|(key, _)| *key) else { return };
                let stream = stream.and_then(|stream| self.watched(key, stream));
                if let Some(connection) = self.connections.get_mut(&key) {
                    match stream {
                        Some(stream) => connection.accept(stream),
                        None => connection.end(),
                    }
                }
            }
        }
    }

    fn watched(&self, key: Key, stream: OwnedFd) -> Option<Stream> {
        Stream::watched(stream, &self.watch, key).ok()
    }

    /// A port of the host's that has no connection with this one of the guest's: there are more than connections.
    fn host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.wrapping_add(1) | FIRST_HOST_PORT;
            let key = Key { guest, host };
            if host != u32::MAX && !self.connections.contains_key(&key) {
                return host;
            }
        }
    }

    /// Takes the guest's packets, as long as there is room for answers. True when some wait for that.
    fn hear_guest(&mut self, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let Some(mut requests) = queues.requests(TRANSMIT) else { return Ok(false) };
        let mut waits = false;
        requests.serve(|mut request| {
            if self.strays.len() >= MOST_STRAYS {
                waits = true;
                return Ok(Outcome::Later);
            }
            let header = Header::parse(&request.readable.read_array().ok_or(QueueError::Incomplete)?);
            self.hear(&header, &mut request.readable);
            Ok(Outcome::Answered(0))
        })?;
        Ok(waits)
    }

    fn hear(&mut self, header: &Header, data: &mut Buffers<'_>) {
        // Whoever says that he is somebody else has no answer.
        if header.source_cid != GUEST {
            return;
        }
        let key = header.key();
        if header.operation == Operation::Reset {
            // It is never answered.
            if let Some(key) = key {
                self.connections.remove(&key);
            }
            return;
        }
        if let Some(connection) = key.and_then(|key| self.connections.get_mut(&key)) {
            return connection.hear(header, data);
        }
        let asked = key.filter(|_| header.operation == Operation::Request);
        if !asked.is_some_and(|key| self.ask_host(key, header)) {
            self.strays.push_back(header.refusal());
        }
    }

    /// Asks the host who listens. False when there is no room for one more, or the host does not listen to us.
    fn ask_host(&mut self, key: Key, header: &Header) -> bool {
        if self.connections.len() >= MOST || !key.is_possible() {
            return false;
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        let wanted = FromDevice::Wanted { port: key.host, number };
        if send(&self.host, &wanted, &[]).is_err() {
            return false;
        }
        let mut connection = Connection::asked(key, number);
        let room = Header { operation: Operation::Credit, ..*header };
        connection.hear(&room, &mut Buffers::default());
        self.connections.insert(key, connection);
        true
    }

    /// Gives the guest what there is for it. True when it got anything.
    fn tell_guest(&mut self, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let Some(mut requests) = queues.requests(RECEIVE) else { return Ok(false) };
        if self.strays.is_empty() && self.connections.is_empty() {
            return Ok(false);
        }
        let mut told = false;
        requests.serve(|mut request| {
            let room = request.writable.bytes().checked_sub(HEADER_BYTES).filter(|&room| room > 0);
            let room = room.ok_or(QueueError::Incomplete)?;
            let Some((header, count)) = self.next(room) else { return Ok(Outcome::Later) };
            told = true;
            let written = request.writable.write(&header.bytes()) + request.writable.write(&self.chunk[..count]);
            Ok(Outcome::Answered(u32::try_from(written).unwrap_or(u32::MAX)))
        })?;
        Ok(told)
    }

    /// The next packet for the guest, one connection after the other.
    fn next(&mut self, room: usize) -> Option<(Header, usize)> {
        if let Some(header) = self.strays.pop_front() {
            return Some((header, 0));
        }
        self.chunk.resize(CHUNK, 0);
        let behind = self.connections.range_mut((Excluded(self.last), Unbounded));
        let mut found =
            behind.into_iter().find_map(|(key, one)| Some((*key, one.next(&mut self.chunk[..room.min(CHUNK)])?)));
        if found.is_none() {
            let before = self.connections.range_mut(..=self.last);
            found =
                before.into_iter().find_map(|(key, one)| Some((*key, one.next(&mut self.chunk[..room.min(CHUNK)])?)));
        }
        let (key, packet) = found?;
        self.last = key;
        if packet.0.operation == Operation::Reset {
            self.connections.remove(&key);
        }
        Some(packet)
    }
}

impl VirtioDevice for Socket {
    /// A machine is frozen before there is a driver.
    type State = ();

    const TYPE: u32 = 19;
    /// Packets to the guest, packets from it, and what happens to the device: nothing ever does.
    const QUEUES: &'static [u16] = &[128, 128, 16];

    /// Streams, which need no feature.
    fn features(&self) -> u64 {
        0
    }

    /// The guest's number.
    fn configuration(&self) -> Vec<u8> {
        GUEST.to_le_bytes().to_vec()
    }

    fn serve(&mut self, _queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.go_on(queues)
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.strays.clear();
        self.chunk = Vec::new();
    }

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
