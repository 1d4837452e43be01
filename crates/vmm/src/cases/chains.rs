//! F81 to F85 and F92: what a driver puts into a queue.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes as _, GuestAddress};

use crate::layout::{HOLE_BEGIN, HOLE_END};
use crate::memory::tests::of;
use crate::virtio::block::Block;
use crate::virtio::block::disk::Disk;
use crate::virtio::entropy::Entropy;
use crate::virtio::testing::{Descriptor, Driver, INDIRECT, MEMORY, NEXT, Random, SIZE, WRITE, ring};

/// Where a test puts a table of its own.
const TABLE: u64 = 0x8000;
/// Where a test has a buffer.
const BUFFER: u64 = 0x1000;

/// The device gives up on this driver at the request that begins at entry 0, says so, answers nothing, and works again
/// after a reset.
#[track_caller]
fn has_to_reset(mut driver: Driver<Entropy>, descriptors: &[Descriptor], table: &[Descriptor]) {
    driver.describe(0, descriptors);
    driver.describe_at(TABLE, table);
    driver.offer(0, 0);
    gave_up(driver);
}

#[track_caller]
fn gave_up(mut driver: Driver<Entropy>) {
    driver.transport.serve(0);
    assert!(driver.gave_up());
    assert_eq!(driver.read(0x60), 2, "it says that it needs a reset");
    driver.transport.serve(0);
    assert!(driver.answers(0).is_empty());
    driver.write(0x70, 0);
    assert_eq!((driver.read(0x70), driver.read(0x60)), (0, 0));
    driver.again();
    driver.request(0, &[], &[3]);
    assert_eq!(driver.answers(0), [(0, 3)]);
}

#[test]
fn f81_chains_without_an_end() {
    let buffer = |next| (BUFFER, 4, WRITE | NEXT, next);
    for next in [0, SIZE, SIZE + 1, 255, u16::MAX] {
        has_to_reset(Driver::new(Entropy), &[buffer(next)], &[]);
    }
    has_to_reset(Driver::new(Entropy), &[buffer(1), buffer(0)], &[]);
    let all: Vec<_> = (0..SIZE).map(|number| buffer((number + 1) % SIZE)).collect();
    has_to_reset(Driver::new(Entropy), &all, &[]);
    // One more than the queue has entries, by way of a table; and as many, which is well.
    let indirect = (TABLE, 16 * (u32::from(SIZE) + 1), INDIRECT, 0);
    let last = |number| if number == SIZE { WRITE } else { WRITE | NEXT };
    let many: Vec<_> = (0..=SIZE).map(|number| (BUFFER, 4, last(number), number + 1)).collect();
    has_to_reset(Driver::new(Entropy), &[indirect], &many);
    let mut driver = Driver::new(Entropy);
    driver.describe(0, &[indirect]);
    driver.describe_at(TABLE, &many[1..]);
    driver.describe_at(TABLE + 16 * u64::from(SIZE - 1), &[(BUFFER, 4, WRITE, 0)]);
    for entry in 0..u64::from(SIZE) - 1 {
        let next = u16::try_from(entry + 1).unwrap();
        driver.describe_at(TABLE + 16 * entry, &[(BUFFER, 4, WRITE | NEXT, next)]);
    }
    driver.offer(0, 0);
    driver.transport.serve(0);
    assert_eq!(driver.answers(0), [(0, 4 * u32::from(SIZE))]);
    // A request that begins outside of the table.
    for head in [SIZE, SIZE + 1, u16::MAX] {
        let mut driver = Driver::new(Entropy);
        driver.offer(0, head);
        gave_up(driver);
    }
}

#[test]
fn f82_buffers_that_are_no_memory() {
    for (address, length) in [
        (u64::MAX, 1),
        (u64::MAX - 8, 16),
        (u64::MAX - 8, u32::MAX),
        (MEMORY - 8, 16),
        (MEMORY, 1),
        (BUFFER, u32::MAX),
        (1 << 63, 8),
    ] {
        has_to_reset(Driver::new(Entropy), &[(address, length, WRITE, 0)], &[]);
        // The second of two buffers, and one to read.
        has_to_reset(Driver::new(Entropy), &[(BUFFER, 4, WRITE | NEXT, 1), (address, length, WRITE, 0)], &[]);
        has_to_reset(Driver::new(Entropy), &[(address, length, 0, 0)], &[]);
    }
    // No byte at all, which is less than this device needs.
    has_to_reset(Driver::new(Entropy), &[(BUFFER, 0, WRITE, 0)], &[]);
    // Together they are more than 4 GiB; each of them is memory.
    let memory = of(HOLE_BEGIN + (2 << 30));
    let half = 2 << 30;
    let together: Vec<_> = (0..3).map(|number| (0, half, WRITE | NEXT, number + 1)).collect();
    has_to_reset(Driver::in_memory(Entropy, Arc::clone(&memory)).in_use(), &together, &[]);
    // Into the hole, across it, and in it.
    for (address, length) in [(HOLE_BEGIN - 8, 16), (HOLE_BEGIN - 8, 2 << 30), (HOLE_BEGIN, 1), (HOLE_END - 8, 16)] {
        for part in [1, 2] {
            memory.write_obj(0_u32, GuestAddress(ring(0, part))).unwrap();
        }
        let driver = Driver::in_memory(Entropy, Arc::clone(&memory)).in_use();
        has_to_reset(driver, &[(address, length, WRITE, 0)], &[]);
    }
}

#[test]
fn f83_tables_of_tables() {
    let buffer = (BUFFER, 4, WRITE, 0);
    let table = |length| (TABLE, length, INDIRECT, 0);
    // In itself, in another one, and behind a buffer.
    has_to_reset(Driver::new(Entropy), &[table(32)], &[table(32), buffer]);
    has_to_reset(Driver::new(Entropy), &[table(32)], &[(TABLE + 64, 16, INDIRECT, 0)]);
    has_to_reset(Driver::new(Entropy), &[table(32)], &[(BUFFER, 4, WRITE | NEXT, 1), table(32)]);
    for length in [0, 1, 15, 17, 16 * 0x1_0000, u32::MAX, u32::MAX - 15] {
        has_to_reset(Driver::new(Entropy), &[table(length)], &[buffer]);
    }
    for address in [MEMORY, MEMORY - 8, u64::MAX - 15, 1 << 63] {
        has_to_reset(Driver::new(Entropy), &[(address, 16, INDIRECT, 0)], &[buffer]);
    }
    // What it says of a next one means nothing: the table is all of the request.
    let mut driver = Driver::new(Entropy);
    driver.describe(0, &[(TABLE, 16, INDIRECT | NEXT, 1), (BUFFER, 9, WRITE, 0)]);
    driver.describe_at(TABLE, &[buffer]);
    driver.offer(0, 0);
    driver.transport.serve(0);
    assert_eq!(driver.answers(0), [(0, 4)]);
}

#[test]
fn f84_a_buffer_to_read_behind_one_to_write() {
    has_to_reset(Driver::new(Entropy), &[(BUFFER, 16, WRITE | NEXT, 1), (BUFFER, 16, 0, 0)], &[]);
    let three = [(BUFFER, 16, NEXT, 1), (BUFFER, 16, WRITE | NEXT, 2), (BUFFER, 16, 0, 0)];
    has_to_reset(Driver::new(Entropy), &three, &[]);
}

#[test]
fn f85_indices_jump_go_back_and_wrap() {
    for index in [SIZE + 1, 0x7fff, 0x8000, u16::MAX] {
        let mut driver = Driver::new(Entropy);
        driver.jump(0, index);
        gave_up(driver);
    }
    let mut driver = Driver::new(Entropy);
    driver.request(0, &[], &[3]);
    assert_eq!(driver.answers(0), [(0, 3)]);
    driver.write(0x64, 1);
    // Back to where it was: 65,535 requests.
    driver.jump(0, 0);
    gave_up(driver);

    let mut driver = Driver::new(Entropy);
    let descriptors: Vec<_> = (0..SIZE).map(|number| (BUFFER, 1, WRITE, number)).collect();
    driver.describe(0, &descriptors);
    for _ in 0..=u16::MAX / SIZE {
        (0..SIZE).for_each(|head| driver.offer(0, head));
        driver.transport.serve(0);
        assert_eq!(driver.answers(0).len(), usize::from(SIZE));
    }
    assert!(!driver.gave_up());
    driver.request(0, &[], &[3]);
    assert_eq!(driver.answers(0).last(), Some(&(0, 3)));
}

/// While a disk is written, another processor changes the request: whatever is done is done within the disk.
#[test]
fn f92_another_processor_rewrites_the_request() {
    const DISK: u64 = 64 * 512;
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    let disk = Disk::new(vec![(File::try_clone(&file).unwrap(), DISK)], false).unwrap();
    let mut block = Block::new(0, false, DISK);
    block.bind(Some(disk));
    let mut driver = Driver::new(block);
    let memory = Arc::clone(&driver.memory);
    let stop = Arc::new(AtomicBool::new(false));
    let other = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut random = Random(7);
            while !stop.load(Ordering::Relaxed) {
                // Into the table of descriptors, and into the header of the request.
                let entry = ring(0, 0) + random.below(48);
                memory.write_obj(random.next(), GuestAddress(entry)).unwrap();
                memory.write_obj(random.below(200), GuestAddress(BUFFER + 8)).unwrap();
                memory.write_obj(random.below(20) << random.below(28), GuestAddress(BUFFER)).unwrap();
            }
        }
    });
    for _ in 0..2000 {
        driver.describe(0, &[(BUFFER, 16, NEXT, 1), (0x2000, 1024, NEXT, 2), (0x4000, 1, WRITE, 0)]);
        driver.offer(0, 0);
        driver.transport.serve(0);
        if driver.gave_up() {
            driver.write(0x70, 0);
            driver.again();
        }
    }
    stop.store(true, Ordering::Relaxed);
    other.join().unwrap();
    assert_eq!(file.metadata().unwrap().len(), DISK);
}
