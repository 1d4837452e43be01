use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::jail::filter::Role;
use crate::virtio::event_loop::EventLoop;
use crate::virtio::testing::{Driver, torment};

/// A device, and the other end of what stands for its tap: a socket keeps frames apart, too.
fn network() -> (File, Network) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (ours.into(), Network::behind(1, Some(theirs.into())))
}

fn frame(length: usize) -> Vec<u8> {
    [vec![0; HEADER], vec![7; length]].concat()
}

#[test]
fn without_a_tap_frames_are_lost_and_none_come() {
    let mut driver = Driver::new(Network::behind(1, None));
    driver.request(0, &[], &[1500]);
    driver.request(1, &[&frame(60)], &[]);
    assert_eq!((driver.answers(0), driver.answers(1)), (vec![], vec![(0, 0)]));
}

#[test]
fn frames_go_both_ways_with_what_may_be_said_of_them() {
    let (mut tap, network) = network();
    let mut driver = Driver::new(network);
    driver.request(1, &[&frame(60)[..HEADER], &frame(60)[HEADER..]], &[]);
    let mut heard = [1; 100];
    assert_eq!((tap.read(&mut heard).unwrap(), driver.answers(1)), (HEADER + 60, vec![(0, 0)]));
    assert!(heard[..HEADER] == [0; HEADER] && heard[HEADER..HEADER + 60] == [7; 60]);

    // A checksum that is missing is for the host's kernel; what cannot be is lost.
    let mut unfinished = frame(60);
    (unfinished[0], unfinished[6], unfinished[8], unfinished[10]) = (1, 34, 16, 0xff);
    driver.request(1, &[&unfinished], &[]);
    assert_eq!((tap.read(&mut heard).unwrap(), driver.answers(1)), (HEADER + 60, vec![(0, 0)]));
    assert_eq!(heard[..HEADER], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    unfinished[6] = 60;
    driver.request(1, &[&unfinished], &[]);
    assert_eq!(driver.answers(1), [(0, 0)]);
    assert_eq!(tap.read(&mut heard).unwrap_err().kind(), ErrorKind::WouldBlock);

    let place = driver.request(0, &[], &[HEADER, 1514])[0];
    assert!(driver.answers(0).is_empty());
    tap.write_all(&frame(60)).unwrap();
    driver.transport.turn(Network::receive);
    assert_eq!(driver.answers(0), [(0, u32::try_from(HEADER).unwrap() + 60)]);
    assert_eq!(driver.bytes(place, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn f94_what_is_no_frame_is_lost() {
    let (mut tap, network) = network();
    let mut driver = Driver::new(network);
    for length in [1, HEADER, HEADER + LEAST_FRAME - 1, HEADER + MOST_FRAME + 1] {
        driver.request(1, &[&vec![7; length]], &[]);
        assert_eq!(driver.answers(1), [(0, 0)], "{length}");
    }
    assert_eq!(tap.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // What is larger than the guest's buffer makes room for what is not.
    driver.request(0, &[], &[HEADER + 100]);
    tap.write_all(&frame(101)).unwrap();
    tap.write_all(&frame(100)).unwrap();
    driver.transport.serve(0);
    assert_eq!(driver.answers(0), [(0, u32::try_from(HEADER).unwrap() + 100)]);
    assert!(!driver.gave_up());
    driver.request(0, &[], &[HEADER]);
    assert!(driver.gave_up(), "a buffer without room for a frame");
}

/// A driver that did not choose to finish checksums gets frames with theirs, in a fork, too.
#[test]
fn missing_checksums_are_for_a_driver_that_wants_them() {
    let unfinished = [vec![1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], vec![7; 4], vec![0; 56]].concat();
    for (left_out, flags, sum) in [(0, 1, [0, 0]), (GUEST_CHECKSUM, 0, [0xf1, 0xf1])] {
        let (mut tap, network) = network();
        let driver = Driver::untouched(network);
        driver.choose_all_but(u32::try_from(left_out).unwrap());
        let mut driver = driver.with_queues();
        for _ in 0..2 {
            tap.write_all(&unfinished).unwrap();
            let place = driver.request(0, &[], &[100])[0];
            assert_eq!(driver.answers(0), [(0, 72)]);
            assert_eq!(driver.bytes(place, 1), [flags]);
            assert_eq!(driver.bytes(place + HEADER as u64 + 4, 2), sum);
            driver.transport.change(|network| network.features = 0);
            driver.transport.restore(driver.transport.save()).unwrap();
        }
    }
}

#[test]
fn slots_have_addresses_of_their_own() {
    assert_ne!(Network::behind(0, None).configuration(), Network::behind(1, None).configuration());
}

/// Each way its own rate, and both go on by themselves.
#[test]
fn frames_wait_for_their_rate() {
    let (mut tap, mut network) = network();
    let twenty = NonZeroU64::new(20);
    network.limit(NetworkRates { receive_frames: twenty, send_frames: twenty, ..NetworkRates::default() });
    let (watched, mut driver) = (network.tap().unwrap().unwrap(), Driver::new(network));
    let mut frames = EventLoop::new().unwrap();
    frames.serve(&driver.transport).unwrap();
    let receiver = Arc::clone(&driver.transport);
    let ready = move || receiver.turn(Network::receive);
    frames.watch(watched.as_fd(), EventFlags::IN | EventFlags::ET, ready).unwrap();
    frames.keep(watched);
    frames.spawn("limited", Role::Network).unwrap();
    let began = Instant::now();
    driver.waiting_request(1, &[&frame(60)], &[]);
    driver.waiting_request(0, &[], &[HEADER + 60]);
    for _ in 1..6 {
        driver.offer(1, 0);
        driver.offer(0, 0);
    }
    (0..6).for_each(|_| tap.write_all(&frame(60)).unwrap());
    driver.write(0x50, 1);
    let mut answered = [0, 0];
    while answered != [6, 6] {
        assert!(began.elapsed() < Duration::from_secs(10), "{answered:?}");
        std::thread::sleep(Duration::from_millis(1));
        for (queue, answered) in answered.iter_mut().enumerate() {
            *answered += driver.answers(queue).len();
        }
    }
    // Two at once, then one each 50 ms.
    assert!(began.elapsed() >= Duration::from_millis(140), "{:?}", began.elapsed());
}

#[test]
fn a_new_rate_holds_at_once_and_nothing_is_lost_to_the_old_one() {
    let (mut tap, mut network) = network();
    let one = NonZeroU64::new(1);
    network.limit(NetworkRates { receive_bytes: one, send_bytes: one, ..NetworkRates::default() });
    let mut driver = Driver::new(network);
    for _ in 0..2 {
        tap.write_all(&frame(60)).unwrap();
        driver.request(0, &[], &[HEADER + 60]);
        driver.request(1, &[&frame(60)], &[]);
    }
    let answered = |driver: &mut Driver<Network>| [driver.answers(0).len(), driver.answers(1).len()];
    assert_eq!(answered(&mut driver), [1, 1], "the first passes, and has those behind it wait for a minute");
    let due = driver.transport.serve(0).unwrap();
    assert!(due > Instant::now() + Duration::from_secs(50));
    driver.transport.change(|network| network.limit(NetworkRates::default()));
    assert_eq!([driver.transport.serve(0), driver.transport.serve(1)], [None, None]);
    assert_eq!(answered(&mut driver), [1, 1]);
    let mut heard = [0; 100];
    assert_eq!([tap.read(&mut heard).unwrap(), tap.read(&mut heard).unwrap()], [HEADER + 60; 2]);
}

#[test]
fn nonsense_does_no_harm() {
    torment(
        || {
            let (mut tap, network) = network();
            tap.write_all(&frame(60)).unwrap();
            network
        },
        200,
    );
}
