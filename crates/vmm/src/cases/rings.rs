//! F88, F89, F99 and F100: rings in use, resets in the middle, and notifications.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};

use crate::virtio::entropy::Entropy;
use crate::virtio::network::Network;
use crate::virtio::testing::{Driver, SIZE, WRITE, ring};

/// Two processors, one of which resets the device while the other's requests are answered: after the reset nothing is written.
#[test]
fn f89_a_reset_in_the_middle_of_requests() {
    let mut driver = Driver::new(Entropy);
    let stop = Arc::new(AtomicBool::new(false));
    let serving = std::thread::spawn({
        let (transport, stop) = (Arc::clone(&driver.transport), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                transport.serve(0);
            }
        }
    });
    let used = GuestAddress(ring(0, 2) + 2);
    let (mut answered, mut rounds) = (0, 0);
    let begin = Instant::now();
    // On a busy host the other thread may come late.
    while rounds < 60 || answered == 0 && begin.elapsed() < Duration::from_secs(10) {
        rounds += 1;
        let descriptors: Vec<_> = (0..SIZE).map(|number| (0x1000, 64, WRITE, number)).collect();
        driver.describe(0, &descriptors);
        (0..SIZE).for_each(|head| driver.offer(0, head));
        std::thread::yield_now();
        driver.write(0x70, 0);
        assert_eq!((driver.read(0x70), driver.read(0x60)), (0, 0));
        let before: u16 = driver.memory.read_obj(used).unwrap();
        answered += u32::from(before);
        driver.memory.write_obj(0xeeee_u16, used).unwrap();
        std::thread::yield_now();
        assert_eq!(driver.memory.read_obj::<u16>(used).unwrap(), 0xeeee);
        driver.again();
    }
    stop.store(true, Ordering::Relaxed);
    serving.join().unwrap();
    assert!(answered > 0 && !driver.gave_up());
}

/// Kicks for queues that there are not, however many, at any time.
#[test]
fn f89_kicks_of_queues_that_there_are_not() {
    let mut driver = Driver::new(Entropy);
    let kicks = || driver.transport.kicks()[0].read().is_ok();
    kicks();
    for queue in (1..64).chain([255, 256, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX]) {
        driver.write(0x50, queue);
        assert!(!kicks(), "{queue}");
        driver.transport.serve(usize::try_from(queue).unwrap());
    }
    driver.request(0, &[], &[3]);
    assert_eq!(driver.answers(0), [(0, 3)]);
}

#[test]
fn f99_event_indices_that_never_come() {
    let mut driver = Driver::with_event_indices(Entropy);
    let used_event = GuestAddress(ring(0, 1) + 4 + 2 * u64::from(SIZE));
    for index in [100, 0x7fff, 0x8000, u16::MAX] {
        driver.memory.write_obj(index, used_event).unwrap();
        driver.request(0, &[], &[3]);
        assert_eq!(driver.answers(0), [(0, 3)], "answered all the same");
        assert_eq!(driver.read(0x60), 0, "{index}");
    }
    // The next answer is the fifth.
    driver.memory.write_obj(4_u16, used_event).unwrap();
    driver.request(0, &[], &[3]);
    assert_eq!((driver.answers(0), driver.read(0x60)), (vec![(0, 3)], 1));
    // And the driver is told from where on it has to kick.
    let wanted: u16 = driver.memory.read_obj(GuestAddress(ring(0, 2) + 4 + 8 * u64::from(SIZE))).unwrap();
    assert_eq!(wanted, 5);
}

/// A million kicks are one, and interrupts that never were can be acknowledged.
#[test]
fn f100_storms_of_kicks_and_acknowledgements() {
    let mut driver = Driver::new(Entropy);
    for number in 0..20_000_u32 {
        driver.write(0x50, 0);
        driver.write(0x64, number | 0xffff_fff0);
    }
    assert!(driver.transport.kicks()[0].read().unwrap() >= 20_000);
    driver.write(0x64, u32::MAX);
    assert_eq!(driver.read(0x60), 0);
    driver.request(0, &[], &[3]);
    assert_eq!((driver.answers(0), driver.read(0x60)), (vec![(0, 3)], 1));
    driver.write(0x64, 2);
    assert_eq!(driver.read(0x60), 1, "only what is said to be seen");
}

/// Two queues that share any of their parts cannot both be in use.
#[test]
fn f88_two_queues_with_memory_in_common() {
    let parts = [(0x80, 0), (0x90, 1), (0xa0, 2)];
    for (register, _) in parts {
        for (_, part) in parts {
            let driver = Driver::untouched(Network::new(0));
            driver.choose_features();
            driver.set_up(0);
            driver.write(0x44, 1);
            driver.set_up(1);
            driver.write(register, u32::try_from(ring(0, part)).unwrap());
            driver.write(0x44, 1);
            assert_eq!(driver.read(0x44), 0, "{register:#x} {part}");
            driver.set_up(1);
            driver.write(0x44, 1);
            assert_eq!(driver.read(0x44), 1);
        }
    }
}
