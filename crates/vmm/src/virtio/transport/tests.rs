use super::*;
use crate::virtio::entropy::Entropy;
use crate::virtio::network::Network;
use crate::virtio::testing::{Driver, MEMORY, Random, ring};

/// Writes that bring a new device's driver to each phase.
const WAYS: [&[u32]; 6] = [&[], &[1], &[1, 3], &[1, 3, 11], &[1, 3, 11, 15], &[128]];
const VALUES: [u32; 6] = [0, 1, 16, 0x8000_0000, u32::MAX, 64];

fn network(slot: u8) -> Network {
    Network::new(slot)
}

fn at(way: &[u32]) -> Driver<Network> {
    brought(Driver::untouched(network(0)), way)
}

fn brought(driver: Driver<Network>, way: &[u32]) -> Driver<Network> {
    for &status in way {
        if status == 11 {
            driver.write(0x24, 1);
            driver.write(0x20, 1);
        }
        driver.write(0x70, status);
        if status == 11 {
            driver.set_up(0);
            driver.write(0x44, 1);
        }
    }
    driver
}

fn frozen(driver: &Driver<Network>) -> (Vec<QueueSetup>, Vec<Option<ActiveState>>) {
    let state = driver.transport.save();
    (state.setups, state.active)
}

/// Every register, in every phase: a queue changes only between FEATURES_OK and DRIVER_OK, one that is ready only by not
/// being ready any more, and only by its own registers.
#[test]
fn f87_a_queue_is_set_up_in_one_phase_only() {
    let queue_registers = [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];
    let memory = crate::memory::tests::of(MEMORY);
    for way in WAYS {
        for register in (0..=0x100).step_by(4) {
            for value in VALUES {
                for selected in [0, 1] {
                    let driver = brought(Driver::in_memory(network(0), Arc::clone(&memory)), way);
                    driver.write(0x30, selected);
                    let before = frozen(&driver);
                    driver.write(register, value);
                    let after = frozen(&driver);
                    let reset = register == 0x70 && value == 0;
                    let allowed = way.last() == Some(&11) && queue_registers.contains(&register);
                    assert!(before == after || reset || allowed, "{way:?} {register:#x} {value:#x}");
                    // The ready one's addresses never change while it is ready.
                    let ready = after.1[0].as_ref();
                    assert!(ready.is_none_or(|queue| Some(queue) == before.1[0].as_ref()), "{register:#x}");
                }
            }
        }
    }
}

#[test]
fn f90_features_are_chosen_among_those_offered() {
    for (low, high, fit) in [(0, 1, true), (0, 0, false), (1 << 2, 1, false), (1 << 5, 1, true), (0, 3, false)] {
        let driver = at(&[1, 3]);
        driver.write(0x24, 0);
        driver.write(0x20, low);
        driver.write(0x24, 1);
        driver.write(0x20, high);
        driver.write(0x24, 2);
        driver.write(0x20, u32::MAX);
        driver.write(0x70, 11);
        assert_eq!(driver.read(0x70) == 11, fit, "{low:#x} {high:#x}");
    }
    let driver = at(&[1, 3, 11]);
    driver.write(0x20, u32::MAX);
    assert_eq!(driver.transport.save().driver_features, 1 << 32);
}

#[test]
fn f86_f88_rings_that_cannot_be_are_not_ready() {
    let bad: [&[(u64, u32)]; 14] = [
        &[(0x38, 0)],
        &[(0x38, 3)],
        &[(0x38, 512)],
        &[(0x38, 0x1_0010)],
        &[(0x80, 0x1_0008)],
        &[(0x90, 0x1_4001)],
        &[(0xa0, 0x1_8002)],
        &[(0x80, 0xffff_fff0)],
        &[(0x84, 1)],
        &[(0x94, u32::MAX), (0x90, 0xffff_fffe)],
        &[(0x80, u32::try_from(MEMORY).unwrap() - 16)],
        &[(0xa0, u32::try_from(ring(1, 0)).unwrap() + 16)],
        &[(0x90, 0)],
        // The other queue's.
        &[(0x80, u32::try_from(ring(0, 2)).unwrap())],
    ];
    for writes in bad {
        let driver = at(&[1, 3, 11]);
        driver.set_up(1);
        for &(register, value) in writes {
            driver.write(register, value);
        }
        driver.write(0x44, 1);
        assert_eq!(driver.read(0x44), 0, "{writes:x?}");
        driver.set_up(1);
        driver.write(0x44, 1);
        assert_eq!(driver.read(0x44), 1);
    }
    // A queue that there is not.
    let driver = at(&[1, 3, 11]);
    for queue in [2, 3, u32::MAX] {
        driver.write(0x30, queue);
        for register in (0x38..0x100).step_by(4).filter(|&register| register != 0x70) {
            driver.write(register, 1);
        }
        assert_eq!((driver.read(0x34), driver.read(0x44)), (0, 0));
    }
}

#[test]
fn f91_odd_accesses_read_zeroes_and_change_nothing() {
    let driver = at(&[1, 3, 11]);
    let before = frozen(&driver);
    for offset in 0..0x1000 {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0xee; width];
            driver.transport.read(offset, &mut data);
            let aligned = width == 4 && offset % 4 == 0;
            assert!(aligned || offset >= 0x100 || data.iter().all(|&byte| byte == 0), "{offset:#x} {width}");
            if !aligned {
                driver.transport.write(offset, &vec![0xff; width]);
            }
        }
    }
    assert_eq!(frozen(&driver), before);
    // The address, and what is behind it.
    let mut configuration = [0xee; 8];
    driver.transport.read(0x102, &mut configuration);
    assert_eq!(configuration, [b'h', 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn f89_kicks_before_the_driver_is_ready_do_nothing() {
    for way in &WAYS[..4] {
        let mut driver = at(way);
        driver.waiting_request(0, &[b"x"], &[]);
        for queue in [0, 1, 2, u32::MAX] {
            driver.write(0x50, queue);
        }
        driver.transport.serve(0);
        driver.transport.serve(7);
        assert!(driver.answers(0).is_empty() && driver.read(0x60) == 0, "{way:?}");
    }
}

#[test]
fn a_fork_goes_on_where_its_template_stood() {
    let mut driver = Driver::new(Entropy);
    driver.request(0, &[], &[3]);
    driver.answers(0);
    driver.transport.set_running(false);
    driver.request(0, &[], &[5]);
    assert!(driver.answers(0).is_empty(), "a machine that stands answers nothing");
    let state = driver.transport.save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    let fork = Arc::new(Transport::new(Entropy, Arc::clone(&driver.memory)).unwrap());
    fork.restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
    assert_eq!(postcard::to_stdvec(&fork.save()).unwrap(), bytes);
    fork.set_running(true);
    fork.kicks()[0].read().unwrap();
    fork.serve(0);
    assert_eq!(driver.answers(0), [(0, 5)]);
}

/// KVM may not have carried the interrupt on when the machine was frozen.
#[test]
fn a_fork_raises_what_was_pending_again() {
    let mut driver = Driver::new(Entropy);
    let fork_of = |driver: &Driver<Entropy>| {
        let fork = Transport::new(Entropy, Arc::clone(&driver.memory)).unwrap();
        fork.restore(driver.transport.save()).unwrap();
        fork
    };
    let quiet = fork_of(&driver);
    assert_eq!(quiet.interrupt().wire().read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    driver.request(0, &[], &[3]);
    let fork = fork_of(&driver);
    assert_eq!((fork.interrupt().pending(), fork.interrupt().wire().read().unwrap()), (1, 1));
}

#[test]
fn what_is_waited_for_is_told() {
    let mut driver = Driver::new(Entropy);
    assert_eq!(driver.transport.standing(), None);
    driver.waiting_request(0, &[], &[3]);
    driver.offer(0, 0);
    assert_eq!(driver.transport.standing().as_deref(), Some("2 in queue 0"));
    driver.transport.serve(0);
    assert_eq!(driver.transport.standing().as_deref(), Some("an interrupt that was not acknowledged"));
    driver.write(0x64, 1);
    driver.request(0, &[b"x"], &[]);
    assert!(driver.transport.standing().unwrap().ends_with("it has given up"));
}

#[test]
fn a_driver_that_gave_up_is_frozen_and_forked_too() {
    for way in WAYS {
        let driver = at(way);
        driver.write(0x70, 128);
        let fork = Transport::new(network(0), Arc::clone(&driver.memory)).unwrap();
        fork.restore(driver.transport.save()).unwrap();
        assert_eq!(frozen(&driver).1, [None, None]);
    }
}

#[test]
fn a_driver_that_kicks_too_early_is_heard_when_it_is_ready() {
    let mut driver = at(&[1, 3, 11]);
    driver.waiting_request(0, &[], &[100]);
    driver.write(0x50, 0);
    driver.transport.kicks()[0].read().unwrap();
    driver.transport.serve(0);
    driver.write(0x70, 15);
    assert_eq!(driver.transport.kicks()[0].read().unwrap(), 1);
    driver.write(0x70, 15);
    assert!(driver.transport.kicks()[0].read().is_err(), "only once");
}

/// Whatever a state file says, it is refused or it is a state that a driver could have made.
#[test]
fn f101_a_damaged_state_of_a_device_does_no_harm() {
    let mut driver = Driver::new(network(1));
    driver.request(1, &[b"frame"], &[]);
    let bytes = postcard::to_stdvec(&driver.transport.save()).unwrap();
    let mut random = Random(1);
    for _ in 0..5000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            damaged[place] = u8::try_from(random.below(256)).unwrap();
        }
        damaged.truncate(usize::try_from(random.below(bytes.len() as u64 * 4)).unwrap().min(bytes.len()));
        let Ok(state) = postcard::from_bytes::<TransportState<()>>(&damaged) else { continue };
        let fork = Transport::new(network(1), Arc::clone(&driver.memory)).unwrap();
        if fork.restore(state).is_ok() {
            fork.set_running(true);
            fork.serve(0);
            fork.serve(1);
        }
    }
}
