//! A driver for tests: sets a device up as Linux does, and puts anything at all into its queues.

use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress};

use super::device::VirtioDevice;
use super::transport::Transport;
use crate::memory::GuestMemory;
use crate::memory::tests::of;

/// Bytes of the guest's memory.
pub(crate) const MEMORY: u64 = 4 << 20;
/// Entries of every queue.
pub(crate) const SIZE: u16 = 16;
/// Where buffers are.
const BUFFERS: u64 = 2 << 20;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// The feature of event indices.
const EVENT_IDX: u32 = 1 << 29;

/// One descriptor. Shape: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// A device and its driver.
pub(crate) struct Driver<D> {
    pub(crate) transport: Arc<Transport<D>>,
    pub(crate) memory: Arc<GuestMemory>,
    available: Vec<u16>,
    seen: Vec<u16>,
    next_buffer: u64,
}

impl<D: VirtioDevice> Driver<D> {
    /// A device that no driver has touched, in a machine that runs.
    pub(crate) fn untouched(device: D) -> Self {
        Self::in_memory(device, of(MEMORY))
    }

    /// As [`Driver::untouched`], in memory that there is already.
    pub(crate) fn in_memory(device: D, memory: Arc<GuestMemory>) -> Self {
        let transport = Arc::new(Transport::new(device, Arc::clone(&memory)).unwrap());
        transport.set_running(true);
        let queues = D::QUEUES.len();
        Self { transport, memory, available: vec![0; queues], seen: vec![0; queues], next_buffer: BUFFERS }
    }

    /// A device in use.
    pub(crate) fn new(device: D) -> Self {
        Self::untouched(device).in_use()
    }

    /// Brings an untouched device into use.
    pub(crate) fn in_use(self) -> Self {
        self.choose_features();
        self.use_queues();
        self
    }

    /// As [`Driver::in_use`], with features that are chosen already.
    pub(crate) fn with_queues(self) -> Self {
        self.use_queues();
        self
    }

    /// A device in use that interrupts only where its driver says.
    pub(crate) fn with_event_indices(device: D) -> Self {
        let driver = Self::untouched(device);
        driver.choose_all_but(0);
        driver.use_queues();
        driver
    }

    /// Begins anew with a device that was reset.
    pub(crate) fn again(&mut self) {
        for queue in 0..D::QUEUES.len() {
            for part in [1, 2] {
                self.memory.write_obj(0_u32, GuestAddress(ring(queue, part))).unwrap();
            }
            (self.available[queue], self.seen[queue]) = (0, 0);
        }
        self.next_buffer_from_start();
        self.choose_features();
        self.use_queues();
    }

    fn use_queues(&self) {
        for queue in 0..D::QUEUES.len() {
            self.set_up(queue);
            self.write(0x44, 1);
            assert_eq!(self.read(0x44), 1, "queue {queue}");
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    /// All that is offered but event indices, so that every answer interrupts.
    pub(crate) fn choose_features(&self) {
        self.choose_all_but(EVENT_IDX);
    }

    /// All that is offered but these of the lower half.
    pub(crate) fn choose_all_but(&self, left_out: u32) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        for half in 0..2 {
            self.write(0x14, half);
            self.write(0x24, half);
            let offered = self.read(0x10);
            self.write(0x20, if half == 0 { offered & !left_out } else { offered });
        }
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11);
    }

    /// Describes a queue.
    pub(crate) fn set_up(&self, queue: usize) {
        self.write(0x30, u32::try_from(queue).unwrap());
        self.write(0x38, u32::from(SIZE));
        for (register, part) in [(0x80, 0), (0x90, 1), (0xa0, 2)] {
            self.write(register, u32::try_from(ring(queue, part)).unwrap());
            self.write(register + 4, 0);
        }
    }

    pub(crate) fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Writes descriptors into a queue's table from entry 0 on.
    pub(crate) fn describe(&self, queue: usize, descriptors: &[Descriptor]) {
        self.describe_at(ring(queue, 0), descriptors);
    }

    /// Writes descriptors anywhere.
    pub(crate) fn describe_at(&self, table: u64, descriptors: &[Descriptor]) {
        for (number, &(address, length, flags, next)) in (0..).zip(descriptors) {
            let at = table + 16 * number;
            self.memory.write_obj(address, GuestAddress(at)).unwrap();
            self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        }
    }

    /// Makes the request at this entry available.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let index = self.available[queue];
        let entry = ring(queue, 1) + 4 + 2 * u64::from(index % SIZE);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.jump(queue, index.wrapping_add(1));
    }

    /// Sets the index of the available ring.
    pub(crate) fn jump(&mut self, queue: usize, index: u16) {
        self.available[queue] = index;
        self.memory.write_obj(index, GuestAddress(ring(queue, 1) + 2)).unwrap();
    }

    /// A buffer in memory with this content.
    pub(crate) fn buffer(&mut self, content: &[u8]) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += content.len() as u64 + 64;
        self.memory.write_slice(content, GuestAddress(address)).unwrap();
        address
    }

    /// Uses the buffers' memory again.
    pub(crate) fn next_buffer_from_start(&mut self) {
        self.next_buffer = BUFFERS;
    }

    /// Puts a well-formed request into a queue and lets the device serve it; returns where it may write.
    pub(crate) fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> Vec<u64> {
        let addresses = self.waiting_request(queue, readable, writable);
        self.transport.serve(queue);
        addresses
    }

    /// Puts a well-formed request into a queue.
    pub(crate) fn waiting_request(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> Vec<u64> {
        let mut parts: Vec<(u64, usize, u16)> =
            readable.iter().map(|content| (self.buffer(content), content.len(), 0)).collect();
        let answers: Vec<u64> = writable.iter().map(|&length| self.buffer(&vec![0xee; length])).collect();
        parts.extend(answers.iter().zip(writable).map(|(&address, &length)| (address, length, WRITE)));
        let last = parts.len() - 1;
        let chained = (0_u16..).zip(parts).map(|(number, (address, length, flags))| {
            let more = if usize::from(number) < last { NEXT } else { 0 };
            (address, u32::try_from(length).unwrap(), flags | more, number + 1)
        });
        let descriptors: Vec<Descriptor> = chained.collect();
        self.describe(queue, &descriptors);
        self.offer(queue, 0);
        answers
    }

    /// What the device answered since the last call. Shape: entry and bytes written.
    pub(crate) fn answers(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let used = ring(queue, 2);
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let mut found = Vec::new();
        while self.seen[queue] != index {
            let entry = used + 4 + 8 * u64::from(self.seen[queue] % SIZE);
            found.push((
                self.memory.read_obj(GuestAddress(entry)).unwrap(),
                self.memory.read_obj(GuestAddress(entry + 4)).unwrap(),
            ));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        found
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// True when the device has given up on this driver.
    pub(crate) fn gave_up(&self) -> bool {
        self.read(0x70) & 64 != 0
    }
}

/// Where a part of a queue is: descriptors, available ring, used ring.
pub(crate) fn ring(queue: usize, part: u64) -> u64 {
    0x1_0000 * (queue as u64 + 1) + 0x4000 * part
}

/// Numbers that look random and are always the same.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Lets a device serve queues full of nonsense: it may give up, and must neither panic nor hang.
pub(crate) fn torment<D: VirtioDevice>(make: impl Fn() -> D, rounds: u64) {
    let mut gave_up = 0;
    let memory = of(MEMORY);
    for round in 0..rounds {
        let mut random = Random(round);
        let mut driver = Driver::in_memory(make(), Arc::clone(&memory)).in_use();
        for part in [1, 2] {
            (0..D::QUEUES.len()).for_each(|queue| memory.write_obj(0_u32, GuestAddress(ring(queue, part))).unwrap());
        }
        for queue in 0..D::QUEUES.len() {
            let descriptors: Vec<Descriptor> = (0..SIZE).map(|_| descriptor(&mut random)).collect();
            driver.describe(queue, &descriptors);
            // A table for indirect descriptors.
            let indirect: Vec<Descriptor> = (0..8).map(|_| descriptor(&mut random)).collect();
            driver.describe_at(BUFFERS, &indirect);
            for _ in 0..random.below(4) {
                let head = u16::try_from(random.below(u64::from(SIZE) + 2)).unwrap();
                driver.offer(queue, head);
            }
            if random.below(16) == 0 {
                driver.jump(queue, u16::try_from(random.below(1 << 16)).unwrap());
            }
            driver.transport.serve(queue);
        }
        gave_up += u32::from(driver.gave_up());
        driver.write(0x70, 0);
        assert_eq!(driver.read(0x70), 0);
    }
    assert!(gave_up > 0);
}

fn descriptor(random: &mut Random) -> Descriptor {
    let address = match random.below(8) {
        0 => random.next() << 16,
        1 => MEMORY - random.below(64),
        2 => BUFFERS,
        _ => random.below(MEMORY),
    };
    let length = match random.below(8) {
        0 => u64::from(u32::MAX) - random.below(2),
        1 => 0,
        2 => 16 * random.below(16),
        3 => 512 * random.below(16),
        _ => random.below(2048),
    };
    let flags = u16::try_from(random.below(8)).unwrap();
    (address, u32::try_from(length).unwrap(), flags, u16::try_from(random.below(u64::from(SIZE) + 2)).unwrap())
}
