//! The entropy device: the host kernel's random bytes.
//!
//! Source: virtio 1.2 §5.4, "Entropy Device".

#[cfg(test)]
mod tests;

use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};

/// Bytes for one request: what a guest's kernel asks for at once is much less.
const MOST: usize = 256;

/// The device. It has nothing to remember.
#[derive(Debug, Default)]
pub(crate) struct Entropy;

impl VirtioDevice for Entropy {
    type State = ();

    const TYPE: u32 = 4;
    const QUEUES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        0
    }

    fn configuration(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(queue) else { return Ok(()) };
        requests.serve(|mut request| {
            let wanted = request.writable.bytes().min(MOST);
            if wanted == 0 {
                return Err(QueueError::Incomplete);
            }
            let mut bytes = [0; MOST];
            // Up to 256 bytes come at once and whole. Source: getrandom(2).
            let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            let written = request.writable.write(&bytes[..got]);
            Ok(Outcome::Answered(u32::try_from(written).unwrap_or(0)))
        })
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
