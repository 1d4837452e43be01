use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

use super::*;
use crate::jail::filter::Role;
use crate::protocol::DiskRates;
use crate::virtio::event_loop::EventLoop;
use crate::virtio::testing::{Driver, torment};

const SECTOR: usize = 512;
const CAPACITY: u64 = 1 << 30;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn file(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}

fn scratch(sectors: usize) -> (File, Driver<Block>) {
    let content = file(&vec![7; sectors * SECTOR]);
    let bytes = (sectors * SECTOR) as u64;
    let disk = Disk::new(vec![(content.try_clone().unwrap(), bytes)], false).unwrap();
    let mut block = Block::new(0, false, CAPACITY);
    block.bind(Some(disk));
    (content, Driver::new(block))
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Status, and what was read.
fn ask(driver: &mut Driver<Block>, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>) {
    let header = header(kind, sector);
    let readable: Vec<&[u8]> = if data.is_empty() { vec![&header] } else { vec![&header, data] };
    let writable: Vec<usize> = if room == 0 { vec![1] } else { vec![room, 1] };
    let places = driver.request(0, &readable, &writable);
    assert_eq!(driver.answers(0).len(), 1, "{kind} {sector}");
    driver.next_buffer_from_start();
    let status = driver.bytes(*places.last().unwrap(), 1)[0];
    let read = if room == 0 { Vec::new() } else { driver.bytes(places[0], room) };
    (status, read)
}

#[test]
fn what_is_written_is_read_and_in_the_file() {
    let (content, mut driver) = scratch(8);
    let data: Vec<u8> = (0..=255).cycle().take(2 * SECTOR).collect();
    assert_eq!(ask(&mut driver, 1, 3, &data, 0).0, OK);
    assert_eq!(ask(&mut driver, 4, 0, &[], 0).0, OK);
    assert_eq!(ask(&mut driver, 0, 3, &[], 2 * SECTOR), (OK, data.clone()));
    let mut found = vec![0; 2 * SECTOR];
    content.read_exact_at(&mut found, 3 * SECTOR as u64).unwrap();
    assert_eq!(found, data);
}

#[test]
fn f93_nothing_reaches_beyond_the_disk_or_the_slot() {
    let (content, mut driver) = scratch(8);
    let one = vec![1; SECTOR];
    for sector in [8, 9, CAPACITY / 512 - 1, CAPACITY / 512, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        assert_eq!(ask(&mut driver, 0, sector, &[], SECTOR).0, IO_ERROR, "{sector:#x}");
        assert_eq!(ask(&mut driver, 1, sector, &one, 0).0, IO_ERROR, "{sector:#x}");
        assert_eq!(ask(&mut driver, 11, 0, &range(sector, 1, 0), 0).0, IO_ERROR, "{sector:#x}");
    }
    assert_eq!(ask(&mut driver, 1, 7, &vec![1; 2 * SECTOR], 0).0, IO_ERROR);
    assert_eq!(ask(&mut driver, 0, 0, &[], SECTOR - 1).0, IO_ERROR);
    assert_eq!(ask(&mut driver, 1, 0, &one[1..], 0).0, IO_ERROR);
    assert_eq!(content.metadata().unwrap().len(), 8 * SECTOR as u64);
    let mut found = vec![0; 8 * SECTOR];
    content.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|&byte| byte == 7));
}

#[test]
fn f93_a_read_only_slot_is_never_written() {
    let content = file(&[7; SECTOR]);
    // Even where the file could be.
    let disk = Disk::new(vec![(content.try_clone().unwrap(), SECTOR as u64)], true).unwrap();
    let mut block = Block::new(1, true, CAPACITY);
    block.bind(Some(disk));
    let mut driver = Driver::new(block);
    for (kind, data) in [(1, vec![1; SECTOR]), (11, range(0, 1, 0)), (13, range(0, 1, 0))] {
        assert_eq!(ask(&mut driver, kind, 0, &data, 0).0, IO_ERROR, "{kind}");
    }
    assert_eq!(ask(&mut driver, 4, 0, &[], 0).0, OK);
    assert_eq!(ask(&mut driver, 0, 0, &[], SECTOR), (OK, vec![7; SECTOR]));
    // A read-only disk in a slot that can be written stays read-only, too.
    let disk = Disk::new(vec![(content, SECTOR as u64)], true).unwrap();
    let mut block = Block::new(0, false, CAPACITY);
    block.bind(Some(disk));
    assert_eq!(ask(&mut Driver::new(block), 1, 0, &[1; SECTOR], 0).0, IO_ERROR);
}

#[test]
fn a_packed_disk_is_read_across_its_parts() {
    let parts: Vec<(File, u64)> = (1..=5_u8).map(|n| (file(&vec![n; SECTOR]), SECTOR as u64)).collect();
    let mut block = Block::new(1, true, CAPACITY);
    block.bind(Some(Disk::new(parts, true).unwrap()));
    let mut driver = Driver::new(block);
    let (status, read) = ask(&mut driver, 0, 1, &[], 3 * SECTOR);
    let expected: Vec<u8> = (2..=4).flat_map(|n| vec![n; SECTOR]).collect();
    assert_eq!((status, read), (OK, expected));
    assert_eq!(ask(&mut driver, 0, 3, &[], 3 * SECTOR).0, IO_ERROR);
}

#[test]
fn discarded_sectors_are_zero_and_take_no_room() {
    let (content, mut driver) = scratch(1024);
    let before = content.metadata().unwrap().blocks();
    assert_eq!(ask(&mut driver, 11, 0, &range(256, 512, 0), 0).0, OK);
    assert_eq!(ask(&mut driver, 0, 256, &[], SECTOR), (OK, vec![0; SECTOR]));
    assert_eq!(ask(&mut driver, 0, 255, &[], SECTOR), (OK, vec![7; SECTOR]));
    assert!(content.metadata().unwrap().blocks() <= before);
    assert_eq!(ask(&mut driver, 13, 0, &range(0, 8, 1), 0).0, OK);
    assert_eq!(ask(&mut driver, 0, 0, &[], SECTOR), (OK, vec![0; SECTOR]));
    for (data, expected) in [
        (range(0, 1, 1), UNSUPPORTED),
        (range(0, 0, 0), IO_ERROR),
        (range(0, u32::MAX, 0), IO_ERROR),
        (vec![0; 15], IO_ERROR),
        (vec![0; 32], UNSUPPORTED),
    ] {
        assert_eq!(ask(&mut driver, 11, 0, &data, 0).0, expected, "{data:?}");
    }
}

#[test]
fn a_slot_without_a_disk_is_empty() {
    let mut driver = Driver::new(Block::new(2, false, CAPACITY));
    assert_eq!(ask(&mut driver, 0, CAPACITY / 512 - 1, &[], SECTOR), (OK, vec![0; SECTOR]));
    assert_eq!(ask(&mut driver, 1, 0, &[1; SECTOR], 0).0, OK);
    assert_eq!(ask(&mut driver, 0, CAPACITY / 512, &[], SECTOR).0, IO_ERROR);
    let (status, name) = ask(&mut driver, 8, 0, &[], 20);
    assert_eq!((status, name.starts_with(b"slot2\0")), (OK, true));
    assert_eq!(ask(&mut driver, 99, 0, &[], 0).0, UNSUPPORTED);
    // Another disk is there at once.
    let disk = Disk::new(vec![(file(&[9; SECTOR]), SECTOR as u64)], true).unwrap();
    driver.transport.change(|block| block.bind(Some(disk)));
    assert_eq!(ask(&mut driver, 0, 0, &[], SECTOR), (OK, vec![9; SECTOR]));
}

#[test]
fn a_file_that_became_shorter_is_an_error() {
    let (content, mut driver) = scratch(8);
    content.set_len(SECTOR as u64).unwrap();
    assert_eq!(ask(&mut driver, 0, 0, &[], 2 * SECTOR).0, IO_ERROR);
    assert_eq!(ask(&mut driver, 0, 0, &[], SECTOR).0, OK);
}

#[test]
fn f84_a_request_without_header_or_status_is_refused() {
    for (readable, writable) in [(vec![&[0_u8; 15][..]], vec![1]), (vec![&[0; 16]], vec![])] {
        let (_, mut driver) = scratch(8);
        driver.request(0, &readable, &writable);
        assert!(driver.gave_up());
    }
}

#[test]
fn a_header_may_lie_in_pieces() {
    let (_, mut driver) = scratch(8);
    let header = header(0, 1);
    let places = driver.request(0, &[&header[..3], &header[3..9], &header[9..]], &[100, 412, 1]);
    assert_eq!(driver.answers(0), [(0, 513)]);
    assert_eq!((driver.bytes(places[1], 412), driver.bytes(places[2], 1)), (vec![7; 412], vec![OK]));
}

#[test]
fn what_is_no_disk_is_refused() {
    let parts = |bytes: &[u64]| bytes.iter().map(|&bytes| (file(b""), bytes)).collect::<Vec<_>>();
    for (bytes, read_only) in [(&[0][..], true), (&[511], true), (&[512, 512], false), (&[], false)] {
        assert!(Disk::new(parts(bytes), read_only).is_err(), "{bytes:?}");
    }
    assert!(Disk::new(parts(&[u64::MAX - 511, 512]), true).is_err());
}

fn limited(rates: DiskRates) -> Driver<Block> {
    let (_, driver) = scratch(64);
    driver.transport.change(|block| block.limit(Limits::new(rates)));
    driver
}

fn write_sectors(driver: &mut Driver<Block>, count: usize) {
    driver.request(0, &[&header(1, 0), &vec![1; count * SECTOR]], &[1]);
}

#[test]
fn what_is_too_fast_waits_and_nothing_else() {
    let bytes_a_second = NonZeroU64::new(64 * 1024);
    let mut driver = limited(DiskRates { write_bytes: bytes_a_second, ..DiskRates::default() });
    write_sectors(&mut driver, 32);
    assert_eq!(driver.answers(0).len(), 1, "a full bucket lets one pass");
    write_sectors(&mut driver, 1);
    assert_eq!(driver.answers(0).len(), 0);
    let due = driver.transport.serve(0).unwrap().saturating_duration_since(Instant::now());
    assert!((Duration::from_millis(50)..Duration::from_millis(150)).contains(&due), "{due:?}");
    std::thread::sleep(due + Duration::from_millis(1));
    assert_eq!(driver.transport.serve(0), None);
    assert_eq!(driver.answers(0).len(), 1, "later it is answered");
    // What waits keeps its place, so a read behind it waits, too; without a limit on reads it would not alone.
    let mut reads = limited(DiskRates { write_bytes: bytes_a_second, ..DiskRates::default() });
    for _ in 0..64 {
        assert_eq!(ask(&mut reads, 0, 0, &[], 32 * SECTOR).0, OK);
        assert_eq!(ask(&mut reads, 4, 0, &[], 0).0, OK);
    }
}

#[test]
fn its_thread_looks_again_by_itself() {
    let mut driver = limited(DiskRates { write_requests: NonZeroU64::new(20), ..DiskRates::default() });
    let mut disks = EventLoop::new().unwrap();
    disks.serve(&driver.transport).unwrap();
    disks.spawn("limited", Role::Disk).unwrap();
    let began = Instant::now();
    driver.waiting_request(0, &[&header(1, 0), &[1; SECTOR]], &[1]);
    for _ in 1..6 {
        driver.offer(0, 0);
    }
    driver.write(0x50, 0);
    let mut answered = 0;
    while answered < 6 {
        assert!(began.elapsed() < Duration::from_secs(10), "{answered}");
        std::thread::sleep(Duration::from_millis(1));
        answered += driver.answers(0).len();
    }
    // Two at once, then one each 50 ms.
    assert!(began.elapsed() >= Duration::from_millis(140), "{:?}", began.elapsed());
}

#[test]
fn nonsense_does_no_harm() {
    torment(
        || {
            let mut block = Block::new(0, false, CAPACITY);
            block.bind(Some(Disk::new(vec![(file(&[7; 16 * SECTOR]), 16 * SECTOR as u64)], false).unwrap()));
            block
        },
        300,
    );
}
