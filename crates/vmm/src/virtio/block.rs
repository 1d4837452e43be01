//! A disk slot. The device is always there and always has the same capacity; the disk behind it may be exchanged, or missing.
//! A missing disk reads as zeroes, and beyond a disk's end there are only errors.
//!
//! Source: virtio 1.2 §5.2, "Block Device".

mod configuration;
pub(crate) mod disk;
pub(crate) mod limits;
mod request;
#[cfg(test)]
mod tests;

use std::time::Instant;

use self::disk::Disk;
use self::limits::Limits;
use super::device::{Queues, VirtioDevice};
use super::queue::QueueError;

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
    limits: Limits,
    /// When the first request that waits may begin.
    due: Option<Instant>,
}

impl Block {
    /// Slot `slot` with nothing behind it.
    pub(crate) fn new(slot: u32, read_only: bool, capacity_bytes: u64) -> Self {
        Self { slot, read_only, capacity_bytes, disk: None, limits: Limits::default(), due: None }
    }

    /// Puts another disk behind it, or none.
    pub(crate) fn bind(&mut self, disk: Option<Disk>) {
        self.disk = disk;
    }

    /// Limits how fast it may be.
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
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
        self.due = None;
        requests.serve(|request| self.answer(request))
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
