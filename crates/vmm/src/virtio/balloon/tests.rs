use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

use super::*;
use crate::memory::{GuestMemory, Writes, map};
use crate::virtio::testing::{Driver, MEMORY, WRITE, torment};

const PAGE: u64 = 4096;
/// Where nothing else of a test is.
const PLACE: u64 = 3 << 20;

/// A template's memory, with a byte in each page, and a fork's.
fn fork(file: &File) -> Arc<GuestMemory> {
    map(file.try_clone().unwrap(), MEMORY, Writes::Private).unwrap()
}

fn template() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY).unwrap();
    for page in 0..16 {
        file.write_all_at(b"template", PLACE + page * PAGE).unwrap();
    }
    file
}

fn text(memory: &GuestMemory, place: u64) -> [u8; 8] {
    memory.read_obj(GuestAddress(place)).unwrap()
}

/// Reports ranges as a driver does.
fn report(driver: &mut Driver<Balloon>, ranges: &[(u64, u32)]) {
    let last = ranges.len() - 1;
    let descriptors: Vec<_> = (0_u16..)
        .zip(ranges)
        .map(|(number, &(address, length))| {
            (address, length, WRITE | u16::from(usize::from(number) < last), number + 1)
        })
        .collect();
    driver.describe(REPORTS, &descriptors);
    driver.offer(REPORTS, 0);
    driver.transport.serve(REPORTS);
}

/// Pages of the memory that are this process's own. Source: Linux pagemap.rst, bits 61 and 63.
fn private_pages(memory: &GuestMemory, pages: u64) -> usize {
    let address = memory.get_host_address(GuestAddress(PLACE)).unwrap() as u64;
    let map = File::open("/proc/self/pagemap").unwrap();
    let entry = |page: u64| {
        let mut bytes = [0; 8];
        map.read_exact_at(&mut bytes, (address / PAGE + page) * 8).unwrap();
        u64::from_le_bytes(bytes)
    };
    (0..pages).filter(|&page| entry(page) >> 63 == 1 && entry(page) >> 61 & 1 == 0).count()
}

#[test]
fn reported_pages_go_back_and_are_the_templates_again() {
    let file = template();
    let memory = fork(&file);
    for page in 0..16 {
        memory.write_slice(b"a secret", GuestAddress(PLACE + page * PAGE)).unwrap();
    }
    assert_eq!(private_pages(&memory, 16), 16);
    let mut driver = Driver::in_memory(Balloon, Arc::clone(&memory)).in_use();
    report(&mut driver, &[(PLACE, 4 * 4096), (PLACE + 8 * PAGE, 4096)]);
    assert_eq!(driver.answers(REPORTS), [(0, 0)]);
    assert_eq!(private_pages(&memory, 16), 11);
    for page in 0..16 {
        let expected = if page < 4 || page == 8 { b"template" } else { b"a secret" };
        assert_eq!(&text(&memory, PLACE + page * PAGE), expected, "{page}");
    }
    // What was taken back can be used again, and is this fork's alone.
    memory.write_slice(b"new data", GuestAddress(PLACE)).unwrap();
    assert_eq!(&text(&fork(&file), PLACE), b"template");
    assert_eq!(&text(&memory, PLACE), b"new data");
}

#[test]
fn a_page_that_is_reported_in_part_stays() {
    let file = template();
    let memory = fork(&file);
    memory.write_slice(&[7; 3 * 4096], GuestAddress(PLACE)).unwrap();
    let mut driver = Driver::in_memory(Balloon, Arc::clone(&memory)).in_use();
    report(&mut driver, &[(PLACE + 1, 4095), (PLACE + PAGE, 4095), (PLACE + 2 * PAGE - 1, 2), (PLACE + 5, 0)]);
    assert_eq!(private_pages(&memory, 3), 3);
    report(&mut driver, &[(PLACE + 1, 2 * 4096)]);
    assert_eq!(private_pages(&memory, 3), 2);
    assert_eq!(text(&memory, PLACE + PAGE), *b"template");
}

#[test]
fn f97_what_is_no_memory_is_not_reported() {
    let memory_end = u32::try_from(MEMORY).unwrap();
    for (address, length) in [
        (MEMORY, 4096),
        (MEMORY - PAGE, 8192),
        (u64::MAX - 4095, 4096),
        (0xd000_0000, 4096),
        (0xfee0_0000, 4096),
        (PAGE, u32::MAX),
        (0, memory_end + 1),
    ] {
        let mut driver = Driver::new(Balloon);
        report(&mut driver, &[(PLACE, 4096), (address, length)]);
        assert!(driver.gave_up(), "{address:#x} {length}");
    }
    // Without anything that may be written, too.
    let mut driver = Driver::new(Balloon);
    driver.request(REPORTS, &[b"to read"], &[]);
    assert!(driver.gave_up());
}

/// A driver that reports its own queues has what the template has there: it harms itself.
#[test]
fn f97_a_guest_reports_all_it_has() {
    let file = template();
    let mut driver = Driver::in_memory(Balloon, fork(&file)).in_use();
    report(&mut driver, &[(0, u32::try_from(MEMORY).unwrap())]);
    driver.transport.serve(REPORTS);
    driver.write(0x70, 0);
    driver.again();
    assert_eq!(text(&driver.memory, PLACE), *b"template");
}

#[test]
fn f97_nothing_is_put_into_the_balloon() {
    let mut driver = Driver::new(Balloon);
    let mut configuration = [0xee; 16];
    driver.transport.read(0x100, &mut configuration);
    assert_eq!(configuration, [0; 16], "it wants no page");
    let place = u32::try_from(PLACE / PAGE).unwrap();
    driver.memory.write_slice(b"stays as", GuestAddress(PLACE)).unwrap();
    for queue in [0, 1] {
        for page in [place, 0, u32::MAX] {
            driver.request(queue, &[&page.to_le_bytes()], &[]);
            assert_eq!(driver.answers(queue), [(0, 0)]);
        }
    }
    assert_eq!(text(&driver.memory, PLACE), *b"stays as");
}

#[test]
fn nonsense_does_no_harm() {
    torment(|| Balloon, 300);
}
