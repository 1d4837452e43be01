//! The console device with one named port, a byte stream to the guest. The host's end is a UNIX stream socket.
//!
//! Source: virtio 1.2 §5.3, "Console Device", with VIRTIO_CONSOLE_F_MULTIPORT.

mod control;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use self::control::{Announcements, Message};
use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};

/// The port's name, as on the qemu backend.
const PORT_NAME: &[u8] = b"dev.bulkhead.gcs";
const MULTIPORT: u64 = 1 << 1;
/// The port's input, to the guest.
pub(crate) const INPUT: usize = 0;
/// The port's output, from the guest.
pub(crate) const OUTPUT: usize = 1;
/// Messages about ports, to the guest.
const CONTROL_INPUT: usize = 2;
/// Messages about ports, from the guest.
const CONTROL_OUTPUT: usize = 3;
/// Bytes that are moved at once.
const CHUNK: usize = 16 * 1024;

/// The device, and the host's end of its port.
pub(crate) struct Console {
    socket: OwnedFd,
    /// The host's end was closed.
    host_gone: bool,
    /// A program in the guest has the port open: what comes before is kept in the socket.
    guest_open: bool,
    announcements: Announcements,
    /// Bytes of the guest's first waiting output that are sent already.
    sent: usize,
    chunk: Vec<u8>,
}

/// What is frozen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsoleState {
    guest_open: bool,
    announcements: Announcements,
    sent: u64,
}

impl Console {
    /// A console whose port leads to `socket`, which does not block.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            host_gone: false,
            guest_open: false,
            announcements: Announcements::default(),
            sent: 0,
            chunk: vec![0; CHUNK],
        }
    }

    /// The socket has something to read, or room, or was closed.
    pub(crate) fn socket_ready(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.input(queues)?;
        self.output(queues)
    }

    /// Moves what the host sent into the guest's buffers.
    fn input(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(INPUT).filter(|_| self.guest_open && !self.host_gone) else {
            return Ok(());
        };
        let (socket, chunk, gone) = (&self.socket, &mut self.chunk, &mut self.host_gone);
        requests.serve(|mut request| {
            let room = request.writable.bytes().min(CHUNK);
            if room == 0 {
                return Err(QueueError::Incomplete);
            }
            match recv(socket, &mut chunk[..room], RecvFlags::empty()) {
                Ok((count, _)) if count > 0 => {
                    request.writable.write(&chunk[..count]);
                    Ok(Outcome::Answered(u32::try_from(count).unwrap_or(u32::MAX)))
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Outcome::Later),
                Ok(_) | Err(_) => {
                    *gone = true;
                    Ok(Outcome::Later)
                }
            }
        })
    }

    /// Moves what the guest sends to the host. What the host does not take waits in the guest's queue.
    fn output(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(OUTPUT) else { return Ok(()) };
        let (socket, chunk, gone, sent) = (&self.socket, &mut self.chunk, &mut self.host_gone, &mut self.sent);
        requests.serve(|mut request| {
            request.readable.skip(*sent);
            while !*gone && !request.readable.is_empty() {
                let count = request.readable.read(chunk);
                let mut done = 0;
                while done < count {
                    match send(socket, &chunk[done..count], SendFlags::NOSIGNAL) {
                        Ok(more) => done += more,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(rustix::io::Errno::AGAIN) => {
                            *sent += done;
                            return Ok(Outcome::Later);
                        }
                        Err(_) => {
                            *gone = true;
                            break;
                        }
                    }
                }
                *sent += done;
            }
            *sent = 0;
            Ok(Outcome::Answered(0))
        })
    }

    fn control_output(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(CONTROL_OUTPUT) else { return Ok(()) };
        let (announcements, guest_open) = (&mut self.announcements, &mut self.guest_open);
        requests.serve(|mut request| {
            let bytes = request.readable.read_array().ok_or(QueueError::Incomplete)?;
            match Message::parse(bytes) {
                Some(Message::DeviceReady) => announcements.add = true,
                Some(Message::PortReady) => (announcements.name, announcements.open) = (true, true),
                Some(Message::PortOpen(open)) => *guest_open = open,
                // What it says of a port that there is not, or of something new, means nothing.
                None => {}
            }
            Ok(Outcome::Answered(0))
        })?;
        self.control_input(queues)?;
        self.input(queues)
    }

    fn control_input(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(CONTROL_INPUT) else { return Ok(()) };
        let announcements = &mut self.announcements;
        if announcements.is_empty() {
            return Ok(());
        }
        requests.serve(|mut request| {
            let Some(message) = announcements.next(PORT_NAME) else { return Ok(Outcome::Later) };
            let written = request.writable.write(&message);
            if written < message.len() {
                return Err(QueueError::Incomplete);
            }
            Ok(Outcome::Answered(u32::try_from(written).unwrap_or(u32::MAX)))
        })
    }
}

impl VirtioDevice for Console {
    type State = ConsoleState;

    const TYPE: u32 = 3;
    const QUEUES: &'static [u16] = &[128, 128, 32, 32];

    fn features(&self) -> u64 {
        MULTIPORT
    }

    /// Columns, rows, number of ports, emergency output.
    fn configuration(&self) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes
    }

    fn serve(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        match queue {
            INPUT => self.input(queues),
            OUTPUT => self.output(queues),
            CONTROL_INPUT => self.control_input(queues),
            _ => self.control_output(queues),
        }
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn reset(&mut self) {
        self.guest_open = false;
        self.announcements = Announcements::default();
        self.sent = 0;
    }

    fn save(&self) -> ConsoleState {
        ConsoleState { guest_open: self.guest_open, announcements: self.announcements.clone(), sent: self.sent as u64 }
    }

    fn restore(&mut self, state: ConsoleState) {
        self.guest_open = state.guest_open;
        self.announcements = state.announcements;
        self.sent = usize::try_from(state.sent).unwrap_or(usize::MAX);
    }
}
