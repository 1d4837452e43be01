//! A disk slot. The device is always there and always has the same capacity; the disk behind it may be exchanged, or missing.
//! A missing disk reads as zeroes, and beyond a disk's end there are only errors.
//!
//! Source: virtio 1.2 §5.2, "Block Device".

mod configuration;
pub(crate) mod disk;
mod request;
#[cfg(test)]
mod tests;

use self::disk::Disk;
use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};

/// Largest number of requests that wait, and of buffers of one.
const QUEUE_SIZE: u16 = 256;

/// The device and the disk behind it.
#[derive(Debug)]
pub(crate) struct Block {
    slot: u32,
    /// Known to the driver from the template on, whatever disk comes.
    read_only: bool,
    capacity_bytes: u64,
    disk: Option<Disk>,
}

impl Block {
    /// Slot `slot` with nothing behind it.
    pub(crate) fn new(slot: u32, read_only: bool, capacity_bytes: u64) -> Self {
        Self { slot, read_only, capacity_bytes, disk: None }
    }

    /// Puts another disk behind it, or none.
    pub(crate) fn bind(&mut self, disk: Option<Disk>) {
        self.disk = disk;
    }
}

impl VirtioDevice for Block {
    /// What is behind it is no state of the machine, and a request is over before the machine stands.
    type State = ();

    const TYPE: u32 = 2;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        configuration::features(self.read_only)
    }

    fn configuration(&self) -> Vec<u8> {
        configuration::space(self.capacity_bytes, self.read_only)
    }

    fn serve(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(queue) else { return Ok(()) };
        requests.serve(|request| self.answer(request).map(Outcome::Answered))
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
