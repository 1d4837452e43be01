//! What a device is to its transport.

use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use virtio_queue::Queue;

use super::interrupt::Interrupt;
use super::queue::{QueueError, Requests};
use crate::memory::GuestMemory;

/// One kind of device, with what is behind it.
///
/// When: its transport calls it with its lock held, and only while its driver is ready for it and the machine runs.
pub(crate) trait VirtioDevice: Send + 'static {
    /// What a frozen machine has of it, beyond its queues.
    type State: Serialize + DeserializeOwned + Send;

    /// Source: virtio 1.2 §5, "Device Types".
    const TYPE: u32;
    /// The largest size of each queue, powers of two.
    const QUEUES: &'static [u16];

    /// Feature bits of its kind.
    fn features(&self) -> u64;

    /// The driver has chosen among the features, at first or before the machine was frozen.
    fn chosen(&mut self, _features: u64) {}

    /// The configuration space, read only.
    fn configuration(&self) -> Vec<u8>;

    /// Requests may wait in this queue.
    ///
    /// # Errors
    /// What the guest did wrong.
    fn serve(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError>;

    /// When to look into its queues again, whatever the driver does: requests wait for that moment. Asked after each turn.
    fn due(&self) -> Option<Instant>;

    /// The driver starts anew.
    fn reset(&mut self);

    /// What to keep.
    fn save(&self) -> Self::State;

    /// What was kept.
    fn restore(&mut self, state: Self::State);
}

/// The queues of a device for one turn of it.
pub(crate) struct Queues<'a> {
    queues: &'a mut [Option<Queue>],
    memory: &'a GuestMemory,
    interrupt: &'a Interrupt,
}

impl<'a> Queues<'a> {
    pub(crate) fn new(queues: &'a mut [Option<Queue>], memory: &'a GuestMemory, interrupt: &'a Interrupt) -> Self {
        Self { queues, memory, interrupt }
    }

    /// The requests of a queue, if the driver uses it.
    pub(crate) fn requests(&mut self, number: usize) -> Option<Requests<'_>> {
        let queue = self.queues.get_mut(number)?.as_mut()?;
        Some(Requests::new(queue, self.memory, self.interrupt))
    }
}
