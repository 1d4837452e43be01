//! F91, F93, F94 and F96: requests that a device of this kind does not expect.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::virtio::block::Block;
use crate::virtio::block::disk::Disk;
use crate::virtio::device::VirtioDevice as _;
use crate::virtio::entropy::Entropy;
use crate::virtio::network::Network;
use crate::virtio::testing::{Driver, NEXT, WRITE};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const DISK: u64 = 32 * 512;

fn disk() -> (File, Driver<Block>) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![7; usize::try_from(DISK).unwrap()], 0).unwrap();
    let mut block = Block::new(0, false, 1 << 40);
    block.bind(Some(Disk::new(vec![(file.try_clone().unwrap(), DISK)], false).unwrap()));
    (file, Driver::new(block))
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn status(driver: &mut Driver<Block>, header: &[u8], data: &[u8]) -> u8 {
    let readable: Vec<&[u8]> = if data.is_empty() { vec![header] } else { vec![header, data] };
    let place = driver.request(0, &readable, &[1])[0];
    assert_eq!(driver.answers(0), [(0, 1)]);
    driver.next_buffer_from_start();
    driver.bytes(place, 1)[0]
}

#[test]
fn f91_the_configuration_space_is_read_within_itself_and_never_written() {
    let (_, driver) = disk();
    let expected = Block::new(0, false, 1 << 40).configuration();
    for offset in 0..0x1000 - 0x100_u64 {
        for width in [1, 2, 3, 4, 8, 16] {
            driver.transport.write(0x100 + offset, &vec![0x5a; width]);
            let mut data = vec![0xee; width];
            driver.transport.read(0x100 + offset, &mut data);
            let begin = usize::try_from(offset).unwrap();
            let at = |number| expected.get(begin + number).copied().unwrap_or(0);
            let right: Vec<u8> = (0..width).map(at).collect();
            assert_eq!(data, right, "{offset:#x} {width}");
        }
    }
    driver.transport.read(u64::MAX, &mut [0; 8]);
    driver.transport.write(u64::MAX, &[0; 8]);
}

#[test]
fn f93_kinds_lengths_and_places_that_there_are_not() {
    let (file, mut driver) = disk();
    for kind in (2..=3).chain(5..=7).chain([9, 10, 12]).chain(14..64).chain([0x8000_0000, u32::MAX]) {
        assert_eq!(status(&mut driver, &header(kind, 0), &[0; 512]), UNSUPPORTED, "{kind}");
    }
    for length in [1, 511, 513, 1023] {
        assert_eq!(status(&mut driver, &header(1, 0), &vec![1; length]), IO_ERROR, "{length}");
    }
    let last = DISK / 512;
    for sector in [last, last + 1, (1 << 40) / 512, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX - 1, u64::MAX] {
        assert_eq!(status(&mut driver, &header(1, sector), &[1; 512]), IO_ERROR, "{sector:#x}");
        for kind in [11, 13] {
            let range = [&sector.to_le_bytes()[..], &1_u32.to_le_bytes(), &[0; 4]].concat();
            assert_eq!(status(&mut driver, &header(kind, 0), &range), IO_ERROR, "{kind} {sector:#x}");
        }
    }
    // From inside to the outside: nothing of it is done.
    assert_eq!(status(&mut driver, &header(1, last - 1), &[1; 1024]), IO_ERROR);
    let range = [&(last - 1).to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 4]].concat();
    assert_eq!(status(&mut driver, &header(11, 0), &range), IO_ERROR);
    let mut found = vec![0; usize::try_from(DISK).unwrap()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|&byte| byte == 7) && file.metadata().unwrap().size() == DISK);
    assert_eq!(status(&mut driver, &header(1, last - 1), &[1; 512]), OK);
}

/// The same megabyte named 256 times over: more than one request may move, with a disk and without.
#[test]
fn f93_a_request_of_four_gibibytes() {
    const PIECE: u32 = 1 << 20;
    let (file, mut driver) = disk();
    let readable = driver.buffer(&header(0, 0));
    let table = driver.buffer(&[0; 16 * 256]);
    let place = driver.buffer(&[0xee]);
    let mut descriptors = vec![(readable, 16, NEXT, 1)];
    descriptors.extend((1..255).map(|number| (0x30_0000, PIECE, WRITE | NEXT, number + 1)));
    descriptors.push((place, 1, WRITE, 0));
    for bound in [true, false] {
        if !bound {
            driver.transport.change(|block| block.bind(None));
        }
        driver.describe_at(table, &descriptors);
        driver.describe(0, &[(table, 16 * 256, crate::virtio::testing::INDIRECT, 0)]);
        driver.offer(0, 0);
        driver.transport.serve(0);
        assert_eq!(driver.answers(0), [(0, 1)]);
        assert_eq!(driver.bytes(place, 1), [IO_ERROR]);
    }
    assert_eq!(file.metadata().unwrap().size(), DISK);
}

#[test]
fn f94_frames_of_all_lengths() {
    let mut driver = Driver::new(Network::new(0));
    for length in [1, 11, 12, 13, 25, 26, 65_562, 65_565, 65_566, 200_000] {
        driver.request(1, &[&vec![0xff; length]], &[]);
        assert_eq!(driver.answers(1), [(0, 0)], "{length}");
        driver.next_buffer_from_start();
    }
    // Room, where there is something to read.
    driver.request(1, &[], &[100]);
    assert_eq!(driver.answers(1), [(0, 0)]);
    assert!(!driver.gave_up());
}

#[test]
fn f96_as_much_entropy_as_a_request_can_name() {
    let mut driver = Driver::new(Entropy);
    for length in [1, 255, 256, 257, 1 << 20] {
        driver.request(0, &[b"what is to be read means nothing"], &[length]);
        let expected = u32::try_from(length.min(256)).unwrap();
        assert_eq!(driver.answers(0), [(0, expected)]);
        driver.next_buffer_from_start();
    }
}
