//! The file system device: FUSE requests of the guest's kernel go to a server behind a UNIX stream socket, and its answers come back.
//! Nothing of them is understood here but their lengths. The server takes one after the other, and so does the device: a request
//! stays the first of its queue until its answer is there, and whatever waits for the server waits in the guest.
//!
//! Source: virtio 1.2 §5.11, "File System Device"; Linux `include/uapi/linux/fuse.h`.

mod exchange;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::time::Instant;

use self::exchange::Exchange;
use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};

/// By what a guest mounts it.
const TAG: &[u8] = b"bulkhead";
const TAG_BYTES: usize = 36;
/// What nobody waits for: nodes that the guest forgets.
const PRIORITY: usize = 0;
/// Everything else.
const REQUESTS: usize = 1;

/// The device and the way to the server behind it.
#[derive(Debug)]
pub(crate) struct FileSystem {
    exchange: Exchange,
}

impl FileSystem {
    /// A file system whose server is at the other end of `socket`, which does not block. A server that is not there yet is waited for,
    /// and one that is gone answers everything with an error.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { exchange: Exchange::new(socket) }
    }

    /// The socket has something to read, or room, or was closed.
    pub(crate) fn socket_ready(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        loop {
            // Both queues look after each step: what ends here may be either's.
            self.exchange.go_on();
            // In turn, so that neither queue waits for the other to be empty.
            if !(self.next(PRIORITY, queues)? | self.next(REQUESTS, queues)?) {
                return Ok(());
            }
        }
    }

    /// Answers what is the first of this queue, or begins with it. True when it is answered.
    fn next(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let Some(mut requests) = queues.requests(queue) else { return Ok(false) };
        let mut answered = false;
        requests.serve(|mut request| {
            if !answered && self.exchange.is_idle() {
                self.exchange.begin(queue, &mut request)?;
                self.exchange.go_on();
            }
            let Some(answer) = self.exchange.take_answer(queue) else { return Ok(Outcome::Later) };
            answered = true;
            let written = request.writable.write(&answer);
            Ok(Outcome::Answered(u32::try_from(written).unwrap_or(u32::MAX)))
        })?;
        Ok(answered)
    }
}

impl VirtioDevice for FileSystem {
    /// A machine is frozen before there is a server.
    type State = ();

    const TYPE: u32 = 26;
    /// Linux puts at most as many pages into a request as the second one is long: 1 MiB but for the headers.
    const QUEUES: &'static [u16] = &[128, 256];

    fn features(&self) -> u64 {
        0
    }

    /// The tag, and the number of queues for requests.
    fn configuration(&self) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.resize(TAG_BYTES, 0);
        bytes.extend(1_u32.to_le_bytes());
        bytes
    }

    fn serve(&mut self, _queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.socket_ready(queues)
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn reset(&mut self) {
        self.exchange.abandon();
    }

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
