//! One virtqueue: what the driver sets it up with, and the requests in it once it is in use.
//!
//! Source: virtio 1.2 §2.7, "Split Virtqueues".

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT as _, QueueState, QueueT as _};
use vm_memory::GuestAddress;

use super::buffers::Request;
use super::interrupt::Interrupt;
use crate::memory::GuestMemory;

/// What a guest did wrong. The device stops until it is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    /// More requests than the queue has room for, or a ring that cannot be read.
    #[error("the available ring is broken")]
    Ring,
    /// A request that begins outside of the table.
    #[error("a request without descriptors")]
    Descriptor,
    /// A request whose last descriptor names a next one that is none: outside of the table, or one too many.
    #[error("a chain of descriptors without an end")]
    Chain,
    /// A buffer that is no memory.
    #[error("a buffer outside of memory")]
    NoMemory,
    /// A readable buffer behind a writable one.
    #[error("a readable buffer behind a writable one")]
    Direction,
    /// A request without a part that this device needs.
    #[error("a request without header or without room for the answer")]
    Incomplete,
}

/// A queue as the driver describes it before it is used. Shape: guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueSetup {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl QueueSetup {
    /// The queue, if all that the driver said can be.
    ///
    /// Its size is a power of two up to `most`, its three parts are aligned, in memory, and do not overlap.
    pub(crate) fn activate(self, most: u16, event_idx: bool, memory: &GuestMemory) -> Option<Queue> {
        let mut queue = Queue::new(most).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.available)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let [a, b, c] = self.ranges();
        let apart = !overlap(a, b) && !overlap(a, c) && !overlap(b, c);
        (queue.is_valid(memory) && apart && self.available != 0).then_some(queue)
    }

    /// Begin and end of the three parts, with both event words.
    pub(crate) fn ranges(self) -> [(u64, u64); 3] {
        let size = u64::from(self.size);
        [(self.descriptors, 16 * size), (self.available, 6 + 2 * size), (self.used, 6 + 8 * size)]
            .map(|(begin, length)| (begin, begin.saturating_add(length)))
    }
}

/// True when both ranges have something in common.
pub(crate) fn overlap(one: (u64, u64), other: (u64, u64)) -> bool {
    one.0 < other.1 && other.0 < one.1
}

/// A queue in use, frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActiveState {
    setup: QueueSetup,
    next_available: u16,
    next_used: u16,
}

impl ActiveState {
    /// Of a queue in use.
    pub(crate) fn of(queue: &Queue) -> Self {
        let QueueState { next_avail, next_used, size, desc_table, avail_ring, used_ring, .. } = queue.state();
        let setup = QueueSetup { size, descriptors: desc_table, available: avail_ring, used: used_ring };
        Self { setup, next_available: next_avail, next_used }
    }

    /// What the driver set it up with.
    pub(crate) fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// The queue again; checked as if the driver had set it up.
    pub(crate) fn activate(&self, most: u16, event_idx: bool, memory: &GuestMemory) -> Option<Queue> {
        let mut queue = self.setup.activate(most, event_idx, memory)?;
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
        Some(queue)
    }
}

/// What a device did with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is answered; so many bytes were written into its buffers.
    Answered(u32),
    /// It stays where it is, and so do all behind it.
    Later,
}

/// A queue in use, for one device's turn.
pub(crate) struct Requests<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
    interrupt: &'a Interrupt,
}

impl<'a> Requests<'a> {
    pub(crate) fn new(queue: &'a mut Queue, memory: &'a GuestMemory, interrupt: &'a Interrupt) -> Self {
        Self { queue, memory, interrupt }
    }

    /// Hands every waiting request to `serve`, until there is none or one has to wait; tells the driver.
    ///
    /// # Errors
    /// [`QueueError`] as soon as the guest breaks a rule; requests before that were answered.
    pub(crate) fn serve(
        &mut self,
        mut serve: impl FnMut(Request<'_>) -> Result<Outcome, QueueError>,
    ) -> Result<(), QueueError> {
        loop {
            self.queue.disable_notification(self.memory).map_err(|_| QueueError::Ring)?;
            let mut answered = false;
            let mut waits = false;
            while let Some(request) = self.next()? {
                let head = request.head;
                match serve(request)? {
                    Outcome::Answered(bytes) => {
                        self.queue.add_used(self.memory, head, bytes).map_err(|_| QueueError::Ring)?;
                        answered = true;
                    }
                    Outcome::Later => {
                        self.queue.go_to_previous_position();
                        waits = true;
                        break;
                    }
                }
            }
            if answered && self.queue.needs_notification(self.memory).map_err(|_| QueueError::Ring)? {
                self.interrupt.used();
            }
            let more = self.queue.enable_notification(self.memory).map_err(|_| QueueError::Ring)?;
            if waits || !more {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Result<Option<Request<'a>>, QueueError> {
        let memory = self.memory;
        // An error here must end the turn: the driver's index stays wrong, so asking again would never end.
        let chain = self.queue.iter(memory).map_err(|_| QueueError::Ring)?.next();
        let most = self.queue.max_size();
        chain.map(|chain| Request::new(memory, chain, most)).transpose()
    }
}
