//! A network slot, with a tap behind it or nothing. The guest may leave checksums, and the cutting of TCP's data into frames, to
//! the host; the host may leave checksums to the guest. What a guest says of a frame is checked before the host's kernel sees it.
//! Either direction may be limited: what may not pass yet waits in the guest's queue, or in the tap's.
//!
//! Source: virtio 1.2 §5.1, "Network Device"; Linux Documentation/networking/tuntap.rst.

mod header;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::time::Instant;

use self::header::{BUFFERS, HEADER, Header};
use super::device::{Queues, VirtioDevice};
use super::queue::{Outcome, QueueError};
use super::rate::Buckets;
use crate::protocol::NetworkRates;
use crate::sys;

/// The device takes frames whose checksum is missing.
const CHECKSUM: u64 = 1 << 0;
/// The driver does.
const GUEST_CHECKSUM: u64 = 1 << 1;
const MAC: u64 = 1 << 5;
/// The device takes TCP's data uncut, over IPv4 and over IPv6.
const HOST_TSO: u64 = 1 << 11 | 1 << 12;
/// Frames to the guest.
const RECEIVE: usize = 0;
/// Frames from the guest.
const SEND: usize = 1;
/// An Ethernet header.
const LEAST_FRAME: usize = 14;
/// The longest frame, with room for a VLAN's tag.
const MOST_FRAME: usize = 65_535 + 18;

/// The device and the tap behind it.
#[derive(Debug)]
pub(crate) struct Network {
    address: [u8; 6],
    tap: Option<File>,
    /// What the driver chose.
    features: u64,
    /// The frame that is on its way, with its header; empty until there is one, since most slots never see any.
    frame: Vec<u8>,
    /// How fast each queue may be.
    limits: [Buckets; 2],
    /// When the first frame that waits in each may pass.
    due: [Option<Instant>; 2],
}

impl Network {
    /// The slot with this number, and nothing behind it. Its address is a local one that a fork's personalization replaces.
    pub(crate) fn new(slot: u8) -> Self {
        Self::behind(slot, None)
    }

    /// Puts a tap behind it.
    ///
    /// # Errors
    /// When the tap does not take this device's settings.
    pub(crate) fn attach(&mut self, tap: File) -> io::Result<()> {
        sys::set_up_tap(&tap, HEADER)?;
        self.tap = Some(tap);
        Ok(())
    }

    pub(super) fn behind(slot: u8, tap: Option<File>) -> Self {
        Self {
            address: [0x02, b'b', b'h', 0, 0, slot],
            tap,
            features: 0,
            frame: Vec::new(),
            limits: Default::default(),
            due: [None; 2],
        }
    }

    /// Limits how fast it may be.
    pub(crate) fn limit(&mut self, rates: NetworkRates) {
        let NetworkRates { receive_bytes, send_bytes, receive_frames, send_frames } = rates;
        let now = Instant::now();
        self.limits = [Buckets::new(receive_bytes, receive_frames, now), Buckets::new(send_bytes, send_frames, now)];
        self.due = [None; 2];
    }

    /// The tap, to be watched.
    pub(crate) fn tap(&self) -> Option<io::Result<File>> {
        self.tap.as_ref().map(File::try_clone)
    }

    /// Moves frames from the tap into the guest's buffers. What does not fit is lost.
    pub(crate) fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let (Some(mut requests), Some(tap)) = (queues.requests(RECEIVE), &mut self.tap) else { return Ok(()) };
        let (frame, finish) = (room(&mut self.frame), self.features & GUEST_CHECKSUM == 0);
        let (limit, due) = (&mut self.limits[RECEIVE], &mut self.due[RECEIVE]);
        *due = None;
        requests.serve(|mut request| {
            if request.writable.bytes() < HEADER + LEAST_FRAME {
                return Err(QueueError::Incomplete);
            }
            *due = wait(limit);
            if due.is_some() {
                return Ok(Outcome::Later);
            }
            loop {
                match tap.read(frame) {
                    // A tap has no end; whatever has one gives no more frames.
                    Ok(0) => return Ok(Outcome::Later),
                    Ok(count) if count <= HEADER || count > request.writable.bytes() => {}
                    Ok(count) => {
                        take(limit, count);
                        header::received(&mut frame[..count], finish);
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
        let (tap, frame, features) = (&mut self.tap, room(&mut self.frame), self.features);
        let (limit, due) = (&mut self.limits[SEND], &mut self.due[SEND]);
        *due = None;
        requests.serve(|mut request| {
            *due = wait(limit);
            if due.is_some() {
                return Ok(Outcome::Later);
            }
            let count = request.readable.bytes();
            take(limit, count);
            if let Some(tap) = tap
                && (HEADER + LEAST_FRAME..=frame.len()).contains(&count)
            {
                request.readable.read(&mut frame[..count]);
                // A network may lose frames, and loses those of which something untrue is said.
                if let Some(header) = Header::sent(&frame[..count], features) {
                    frame[..HEADER].copy_from_slice(&header.bytes());
                    let _ = tap.write(&frame[..count]);
                }
            }
            Ok(Outcome::Answered(0))
        })
    }
}

/// When the next frame may pass, if not now. The clock is read for those who have a limit.
fn wait(limit: &Buckets) -> Option<Instant> {
    if limit.is_none() { None } else { limit.due(Instant::now()) }
}

/// Takes what a frame with its header needs.
fn take(limit: &mut Buckets, bytes: usize) {
    if !limit.is_none() {
        limit.take(Instant::now(), bytes.saturating_sub(HEADER) as u64);
    }
}

/// Room for any frame.
fn room(frame: &mut Vec<u8>) -> &mut [u8] {
    frame.resize(HEADER + MOST_FRAME, 0);
    frame
}

impl VirtioDevice for Network {
    /// What is behind it is no state of the machine.
    type State = ();

    const TYPE: u32 = 1;
    const QUEUES: &'static [u16] = &[256, 256];

    fn features(&self) -> u64 {
        MAC | CHECKSUM | GUEST_CHECKSUM | HOST_TSO
    }

    fn chosen(&mut self, features: u64) {
        self.features = features;
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

    fn due(&self) -> Option<Instant> {
        self.due.into_iter().flatten().min()
    }

    fn reset(&mut self) {
        self.features = 0;
        self.due = [None; 2];
    }

    fn save(&self) {}

    fn restore(&mut self, (): ()) {}
}
