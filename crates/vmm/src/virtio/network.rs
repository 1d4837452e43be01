//! A network slot. Nothing is behind it yet: what the guest sends is lost, and nothing comes.
//!
//! Source: virtio 1.2 §5.1, "Network Device".

#[cfg(test)]
mod tests;

use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};

const MAC: u64 = 1 << 5;
/// Frames to the guest.
const RECEIVE: usize = 0;

/// A slot with its number.
#[derive(Debug)]
pub(crate) struct Network {
    address: [u8; 6],
}

impl Network {
    /// The slot with this number. Its address is a local one that a fork's personalization replaces.
    pub(crate) fn new(slot: u8) -> Self {
        Self { address: [0x02, b'b', b'h', 0, 0, slot] }
    }
}

impl VirtioDevice for Network {
    type State = ();

    const TYPE: u32 = 1;
    const QUEUES: &'static [u16] = &[256, 256];

    fn features(&self) -> u64 {
        MAC
    }

    fn configuration(&self) -> Vec<u8> {
        self.address.to_vec()
    }

    fn serve(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(queue).filter(|_| queue != RECEIVE) else { return Ok(()) };
        requests.serve(|_| Ok(Outcome::Answered(0)))
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
