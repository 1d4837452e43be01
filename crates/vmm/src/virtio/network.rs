//! A network slot, with a tap behind it or nothing. Nothing is offloaded: every frame is whole and has its checksums, so
//! there is nothing in a frame's header that the guest could say.
//!
//! Source: virtio 1.2 §5.1, "Network Device"; Linux Documentation/networking/tuntap.rst.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};

use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};
use crate::sys;

const MAC: u64 = 1 << 5;
/// Frames to the guest.
const RECEIVE: usize = 0;
/// Bytes of the header before each frame, in the guest's buffers and on the tap.
const HEADER: usize = 12;
/// Where the header says over how many buffers a frame is spread: always one.
const BUFFERS: std::ops::Range<usize> = 10..12;
/// An Ethernet header.
const LEAST_FRAME: usize = 14;
/// The longest frame, with room for a VLAN's tag.
const MOST_FRAME: usize = 65_535 + 18;

/// The device and the tap behind it.
#[derive(Debug)]
pub(crate) struct Network {
    address: [u8; 6],
    tap: Option<File>,
    /// The frame that is on its way, with its header.
    frame: Vec<u8>,
}

impl Network {
    /// The slot with this number. Its address is a local one that a fork's personalization replaces.
    ///
    /// # Errors
    /// When the tap does not take this device's settings.
    pub(crate) fn new(slot: u8, tap: Option<File>) -> io::Result<Self> {
        if let Some(tap) = &tap {
            sys::set_up_tap(tap, HEADER)?;
        }
        Ok(Self::behind(slot, tap))
    }

    pub(super) fn behind(slot: u8, tap: Option<File>) -> Self {
        Self { address: [0x02, b'b', b'h', 0, 0, slot], tap, frame: vec![0; HEADER + MOST_FRAME] }
    }

    /// The tap, to be watched.
    pub(crate) fn tap(&self) -> Option<io::Result<File>> {
        self.tap.as_ref().map(File::try_clone)
    }

    /// Moves frames from the tap into the guest's buffers. What does not fit is lost.
    pub(crate) fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let (Some(mut requests), Some(tap)) = (queues.requests(RECEIVE), &mut self.tap) else { return Ok(()) };
        let frame = &mut self.frame;
        requests.serve(|mut request| {
            if request.writable.bytes() < HEADER + LEAST_FRAME {
                return Err(QueueError::Incomplete);
            }
            loop {
                match tap.read(frame) {
                    // A tap has no end; whatever has one gives no more frames.
                    Ok(0) => return Ok(Outcome::Later),
                    Ok(count) if count <= HEADER || count > request.writable.bytes() => {}
                    Ok(count) => {
                        frame[..HEADER].fill(0);
                        frame[BUFFERS].copy_from_slice(&1_u16.to_le_bytes());
                        let written = request.writable.write(&frame[..count]);
                        return Ok(Outcome::Answered(u32::try_from(written).unwrap_or(0)));
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Nothing there, or the link is down, or the tap is gone: then nothing comes.
                    Err(_) => return Ok(Outcome::Later),
                }
            }
        })
    }

    /// Moves frames from the guest to the tap. What is no frame, or what the tap does not take now, is lost.
    fn transmit(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(mut requests) = queues.requests(queue) else { return Ok(()) };
        let (tap, frame) = (&mut self.tap, &mut self.frame);
        requests.serve(|mut request| {
            let count = request.readable.bytes();
            if let Some(tap) = tap
                && (HEADER + LEAST_FRAME..=frame.len()).contains(&count)
            {
                request.readable.read(&mut frame[..count]);
                frame[..HEADER].fill(0);
                // A network may lose frames.
                let _ = tap.write(&frame[..count]);
            }
            Ok(Outcome::Answered(0))
        })
    }
}

impl VirtioDevice for Network {
    /// What is behind it is no state of the machine.
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
        match queue {
            RECEIVE => self.receive(queues),
            _ => self.transmit(queue, queues),
        }
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
