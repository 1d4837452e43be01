//! The memory that one request names: its readable buffers, then its writable ones. Nothing here believes the guest: each
//! address and length is checked against the memory that there is, and what the guest changes meanwhile only changes data.
//!
//! Source: virtio 1.2 §2.7.5, "The Virtqueue Descriptor Table".

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::queue::QueueError;
use crate::memory::GuestMemory;
use crate::sys;

/// A request of the guest.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// What the used ring names it by.
    pub(crate) head: u16,
    /// What the driver tells.
    pub(crate) readable: Buffers<'a>,
    /// Where the device answers.
    pub(crate) writable: Buffers<'a>,
}

impl<'a> Request<'a> {
    /// Collects the buffers of a chain of at most `most` descriptors, wherever they lie. Source: virtio 1.2 §2.7.5.3.1.
    ///
    /// # Errors
    /// [`QueueError`] when the chain is empty, too long, has no end, names what is no memory, or has a readable buffer behind a
    /// writable one.
    pub(crate) fn new(
        memory: &'a GuestMemory,
        chain: DescriptorChain<&'a GuestMemory>,
        most: u16,
    ) -> Result<Self, QueueError> {
        let head = chain.head_index();
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        let (mut empty, mut goes_on) = (true, false);
        for (number, descriptor) in chain.enumerate() {
            if number == usize::from(most) {
                return Err(QueueError::Chain);
            }
            (empty, goes_on) = (false, descriptor.has_next());
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else if writable.is_empty() {
                (&mut readable, Permissions::Read)
            } else {
                return Err(QueueError::Direction);
            };
            let length = usize::try_from(descriptor.len()).map_err(|_| QueueError::NoMemory)?;
            let slices = memory.get_slices(descriptor.addr(), length, access).map_err(|_| QueueError::NoMemory)?;
            for slice in slices {
                buffers.push(slice.map_err(|_| QueueError::NoMemory)?);
            }
        }
        match (empty, goes_on) {
            (true, _) => Err(QueueError::Descriptor),
            // The chain ends where the next descriptor cannot be read or may not be.
            (false, true) => Err(QueueError::Chain),
            (false, false) => Ok(Self { head, readable, writable }),
        }
    }
}

/// Buffers, one behind the other; what was read or written is gone from the front.
#[derive(Debug, Default)]
pub(crate) struct Buffers<'a> {
    slices: VecDeque<VolatileSlice<'a>>,
    bytes: usize,
}

impl<'a> Buffers<'a> {
    fn push(&mut self, slice: VolatileSlice<'a>) {
        // At most 4 GiB in all, see `DescriptorChain`.
        self.bytes += slice.len();
        self.slices.push_back(slice);
    }

    /// Bytes that are left.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when none is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Leaves out so many bytes.
    pub(crate) fn skip(&mut self, count: usize) {
        let mut rest = count;
        while rest > 0 {
            let Some(front) = self.front(rest) else { return };
            let length = front.len();
            self.consume(length);
            rest -= length;
        }
    }

    /// Takes the last bytes, if there are so many, away from the others.
    pub(crate) fn split_tail(&mut self, count: usize) -> Option<Self> {
        let keep = self.bytes.checked_sub(count)?;
        let mut tail = Self::default();
        let mut before = 0;
        let mut kept = Self::default();
        for slice in self.slices.drain(..) {
            let here = keep.saturating_sub(before).min(slice.len());
            before += slice.len();
            let (front, back) = slice.split_at(here).ok()?;
            for (part, buffers) in [(front, &mut kept), (back, &mut tail)] {
                if !part.is_empty() {
                    buffers.push(part);
                }
            }
        }
        *self = kept;
        Some(tail)
    }

    /// Reads into `into` as much as there is, and says how much.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(front) = self.front(into.len() - done) {
            let count = front.copy_to(&mut into[done..]);
            self.consume(count);
            done += count;
        }
        done
    }

    /// Reads exactly `N` bytes, or nothing.
    pub(crate) fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut array = [0; N];
        if self.bytes < N {
            return None;
        }
        self.read(&mut array);
        Some(array)
    }

    /// Writes as much of `from` as there is room, and says how much.
    pub(crate) fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        while let Some(front) = self.front(from.len() - done) {
            front.copy_from(&from[done..done + front.len()]);
            let count = front.len();
            self.consume(count);
            done += count;
        }
        done
    }

    /// Fills `count` bytes from a file.
    ///
    /// # Errors
    /// When the file fails or ends before.
    pub(crate) fn fill_from(
        &mut self,
        source: &mut impl ReadVolatile,
        count: usize,
    ) -> Result<(), VolatileMemoryError> {
        let mut rest = count;
        while let Some(mut front) = self.front(rest) {
            source.read_exact_volatile(&mut front)?;
            let count = front.len();
            self.consume(count);
            rest -= count;
        }
        Ok(())
    }

    /// Writes `count` bytes to a file.
    ///
    /// # Errors
    /// When the file fails.
    pub(crate) fn drain_to(&mut self, sink: &mut impl WriteVolatile, count: usize) -> Result<(), VolatileMemoryError> {
        let mut rest = count;
        while let Some(front) = self.front(rest) {
            sink.write_all_volatile(&front)?;
            let count = front.len();
            self.consume(count);
            rest -= count;
        }
        Ok(())
    }

    /// Fills `count` bytes with zeroes.
    pub(crate) fn fill_zero(&mut self, count: usize) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut rest = count;
        while rest > 0 && !self.is_empty() {
            rest -= self.write(&ZEROES[..rest.min(ZEROES.len())]);
        }
    }

    /// Takes the pages that lie wholly in them back from the guest: what they hold is gone.
    pub(crate) fn take_back(&mut self) {
        for slice in self.slices.drain(..) {
            // What cannot be taken stays, as it would without this.
            let _ = sys::take_back(&slice);
        }
        self.bytes = 0;
    }

    /// The first piece, at most `most` bytes of it; none when that is nothing.
    fn front(&mut self, most: usize) -> Option<VolatileSlice<'a>> {
        while self.slices.front().is_some_and(|front| front.is_empty()) {
            self.slices.pop_front();
        }
        let front = self.slices.front()?;
        if most == 0 {
            return None;
        }
        front.subslice(0, most.min(front.len())).ok()
    }

    /// Drops so many bytes of the first piece.
    fn consume(&mut self, count: usize) {
        let Some(front) = self.slices.pop_front() else { return };
        self.bytes -= count;
        if let Ok(rest) = front.offset(count)
            && !rest.is_empty()
        {
            self.slices.push_front(rest);
        }
    }
}
