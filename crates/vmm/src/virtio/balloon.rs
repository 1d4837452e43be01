//! The balloon device, for one thing: the guest reports memory that it does not use, and the host takes it back. What a page reads
//! as after that is what the template has there, which is nobody's; a driver whose kernel relies on free pages having some content
//! does not report any, since this device does not offer to know of it (VIRTIO_BALLOON_F_PAGE_POISON).
//!
//! The host never asks for memory: the balloon's size is always nothing, and what a guest puts into it stays the guest's.
//!
//! Source: virtio 1.2 §5.5, "Traditional Memory Balloon Device", §5.5.6.7, "Free Page Reporting".

#[cfg(test)]
mod tests;

use std::time::Instant;

use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};

const REPORTING: u64 = 1 << 5;
/// Queues 0 and 1 fill and empty the balloon. Those in between belong to features that are not offered, and have no number.
const REPORTS: usize = 2;
/// Size, size so far, number of the hint, content of free pages.
const CONFIGURATION_BYTES: usize = 16;

/// The device. It has nothing to remember.
#[derive(Debug, Default)]
pub(crate) struct Balloon;

impl VirtioDevice for Balloon {
    type State = ();

    const TYPE: u32 = 5;
    /// Linux reports 32 pieces at once, and asks for room for them.
    const QUEUES: &'static [u16] = &[16, 16, 32];

    fn features(&self) -> u64 {
        REPORTING
    }

    fn configuration(&self) -> Vec<u8> {
        vec![0; CONFIGURATION_BYTES]
    }

    fn serve(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(queue) else { return Ok(()) };
        requests.serve(|mut request| {
            if queue == REPORTS {
                if request.writable.is_empty() {
                    return Err(QueueError::Incomplete);
                }
                request.writable.take_back();
            }
            Ok(Outcome::Answered(0))
        })
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
