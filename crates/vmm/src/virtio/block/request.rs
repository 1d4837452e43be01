//! Requests of a block driver. Source: virtio 1.2 §5.2.6, "Device Operation".

use super::Block;
use super::configuration::{MOST_BYTES, MOST_DISCARD_SECTORS};
use super::disk::SECTOR;
use super::limits::Direction;
use crate::virtio::buffers::{Buffers, Request};
use crate::virtio::queue::{Outcome, QueueError};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// The one flag of a range to zero: its room may be given back, which is what happens anyway.
const UNMAP: u32 = 1;
const ID_BYTES: usize = 20;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The header of every request.
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn read(readable: &mut Buffers<'_>) -> Option<Self> {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = readable.read_array::<16>()?;
        Some(Self { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) })
    }
}

impl Block {
    /// Answers a request, or leaves it for later when the disks' rates say so.
    ///
    /// # Errors
    /// [`QueueError::Incomplete`] when it has no header, or no room for the status.
    pub(super) fn answer(&mut self, request: Request<'_>) -> Result<Outcome, QueueError> {
        let Request { mut readable, mut writable, .. } = request;
        let header = Header::read(&mut readable).ok_or(QueueError::Incomplete)?;
        let mut status = writable.split_tail(1).ok_or(QueueError::Incomplete)?;
        let room = writable.bytes();
        let admitted = match header.kind {
            READ => self.limits.take(Direction::Read, room),
            WRITE => self.limits.take(Direction::Write, readable.bytes()),
            DISCARD | WRITE_ZEROES => self.limits.take(Direction::Write, 0),
            _ => Ok(()),
        };
        if let Err(due) = admitted {
            self.due = Some(due);
            return Ok(Outcome::Later);
        }
        let outcome = match header.kind {
            READ => self.read(header.sector, &mut writable),
            WRITE => self.write(header.sector, &mut readable),
            FLUSH => self.flush(),
            GET_ID => self.identify(&mut writable),
            DISCARD => self.discard(&mut readable, 0),
            WRITE_ZEROES => self.discard(&mut readable, UNMAP),
            _ => Status::Unsupported,
        };
        status.write(&[outcome as u8]);
        let written = room - writable.bytes() + 1;
        Ok(Outcome::Answered(u32::try_from(written).unwrap_or(u32::MAX)))
    }

    /// Place and length of a transfer, if it is whole sectors inside of the slot.
    fn range(&self, sector: u64, bytes: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(bytes)?;
        (bytes.is_multiple_of(SECTOR) && end <= self.capacity_bytes).then_some(offset)
    }

    /// As [`Block::range`], for as much as one request may read or write.
    fn transfer(&self, sector: u64, bytes: u64) -> Option<u64> {
        self.range(sector, bytes).filter(|_| bytes <= MOST_BYTES)
    }

    fn read(&self, sector: u64, into: &mut Buffers<'_>) -> Status {
        let count = into.bytes();
        let Some(offset) = self.transfer(sector, count as u64) else { return Status::IoError };
        match &self.disk {
            None => {
                into.fill_zero(count);
                Status::Ok
            }
            Some(disk) => status(&disk.read(offset, count, into)),
        }
    }

    fn write(&self, sector: u64, from: &mut Buffers<'_>) -> Status {
        let count = from.bytes();
        let Some(offset) = self.transfer(sector, count as u64).filter(|_| !self.read_only) else {
            return Status::IoError;
        };
        self.disk.as_ref().map_or(Status::Ok, |disk| status(&disk.write(offset, count, from)))
    }

    fn flush(&self) -> Status {
        self.disk.as_ref().map_or(Status::Ok, |disk| status(&disk.flush()))
    }

    fn identify(&self, into: &mut Buffers<'_>) -> Status {
        let mut name = format!("slot{}", self.slot).into_bytes();
        name.resize(ID_BYTES, 0);
        into.write(&name);
        Status::Ok
    }

    /// Discards or zeroes the one range that follows the header. Both leave zeroes.
    fn discard(&self, readable: &mut Buffers<'_>, known_flags: u32) -> Status {
        if self.read_only {
            return Status::IoError;
        }
        let Some([sector @ .., c0, c1, c2, c3, f0, f1, f2, f3]) = readable.read_array::<16>() else {
            return Status::IoError;
        };
        let (count, flags) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([f0, f1, f2, f3]));
        if flags & !known_flags != 0 || !readable.is_empty() {
            return Status::Unsupported;
        }
        let bytes = u64::from(count) * SECTOR;
        let range = self.range(u64::from_le_bytes(sector), bytes);
        let Some(offset) = range.filter(|_| count > 0 && count <= MOST_DISCARD_SECTORS) else { return Status::IoError };
        self.disk.as_ref().map_or(Status::Ok, |disk| status(&disk.discard(offset, bytes)))
    }
}

fn status(result: &std::io::Result<()>) -> Status {
    if result.is_ok() { Status::Ok } else { Status::IoError }
}
