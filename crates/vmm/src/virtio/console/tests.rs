use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::*;
use crate::virtio::testing::{Driver, torment};

fn console() -> (UnixStream, Driver<Console>) {
    let (host, guest) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    guest.set_nonblocking(true).unwrap();
    (host, Driver::new(Console::new(guest.into())))
}

fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
    [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn say(driver: &mut Driver<Console>, port: u32, event: u16, value: u16) {
    let message = message(port, event, value);
    driver.request(CONTROL_OUTPUT, &[&message], &[]);
    assert_eq!(driver.answers(CONTROL_OUTPUT).len(), 1);
}

/// The next message to the guest.
fn hear(driver: &mut Driver<Console>) -> Option<Vec<u8>> {
    let place = driver.request(CONTROL_INPUT, &[], &[64])[0];
    let answers = driver.answers(CONTROL_INPUT);
    let length = answers.first()?.1;
    Some(driver.bytes(place, usize::try_from(length).unwrap()))
}

#[test]
fn the_port_is_announced_by_its_name() {
    let (_host, mut driver) = console();
    say(&mut driver, 0, 0, 1);
    assert_eq!(hear(&mut driver).unwrap(), message(0, 1, 1));
    say(&mut driver, 0, 3, 1);
    assert_eq!(hear(&mut driver).unwrap(), [message(0, 7, 1), b"dev.bulkhead.gcs".to_vec()].concat());
    assert_eq!(hear(&mut driver).unwrap(), message(0, 6, 1));
    assert_eq!(hear(&mut driver), None);
}

#[test]
fn f96_a_flood_of_messages_costs_nothing() {
    let (_host, mut driver) = console();
    for number in 0..5000_u32 {
        say(&mut driver, number % 3, u16::try_from(number % 9).unwrap(), 1);
        driver.next_buffer_from_start();
    }
    assert!(!driver.gave_up());
    // Three flags, whatever was said.
    assert!((0..4).map_while(|_| hear(&mut driver)).count() <= 3);
    driver.request(CONTROL_OUTPUT, &[b"short"], &[]);
    assert!(driver.gave_up());
}

#[test]
fn bytes_go_both_ways_and_wait_until_the_port_is_open() {
    let (mut host, mut driver) = console();
    host.write_all(b"early").unwrap();
    let place = driver.request(INPUT, &[], &[16])[0];
    assert!(driver.answers(INPUT).is_empty());
    say(&mut driver, 0, 6, 1);
    assert_eq!((driver.answers(INPUT), driver.bytes(place, 5)), (vec![(0, 5)], b"early".to_vec()));
    driver.request(OUTPUT, &[b"hel", b"lo"], &[]);
    let mut heard = [0; 16];
    assert_eq!((host.read(&mut heard).unwrap(), driver.answers(OUTPUT)), (5, vec![(0, 0)]));
    assert_eq!(&heard[..5], b"hello");
}

#[test]
fn what_the_host_does_not_take_waits_whole_and_in_order() {
    let (mut host, mut driver) = console();
    let data: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    driver.request(OUTPUT, &[&data], &[]);
    assert!(driver.answers(OUTPUT).is_empty(), "a socket's buffer is smaller");
    // A freeze in the middle keeps the place.
    let state = driver.transport.save();
    driver.transport.change(|console| {
        let state = console.save();
        console.reset();
        console.restore(state);
    });
    assert_eq!(postcard::to_stdvec(&state).unwrap(), postcard::to_stdvec(&driver.transport.save()).unwrap());
    let mut heard = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        match host.read(&mut chunk) {
            Ok(count) => heard.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !driver.answers(OUTPUT).is_empty() {
                    break;
                }
                driver.transport.turn(Console::socket_ready);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(heard == data);
}

#[test]
fn a_host_that_is_gone_stops_nothing() {
    let (host, mut driver) = console();
    say(&mut driver, 0, 6, 1);
    drop(host);
    driver.request(OUTPUT, &[b"lost"], &[]);
    driver.request(INPUT, &[], &[16]);
    assert_eq!((driver.answers(OUTPUT), driver.answers(INPUT)), (vec![(0, 0)], vec![]));
    assert!(!driver.gave_up());
}

#[test]
fn nonsense_does_no_harm() {
    torment(
        || {
            let (mut host, guest) = UnixStream::pair().unwrap();
            host.write_all(b"something to read").unwrap();
            guest.set_nonblocking(true).unwrap();
            Console::new(guest.into())
        },
        200,
    );
}
