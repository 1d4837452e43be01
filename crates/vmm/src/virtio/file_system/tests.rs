use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::*;
use crate::virtio::testing::{Driver, torment};

/// A device in use, and the server behind it.
fn device() -> (Driver<FileSystem>, UnixStream) {
    let (server, device) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    (Driver::new(FileSystem::new(device.into())), server)
}

/// A message with its length and number, and this content.
fn message(unique: u64, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + content.len()).unwrap();
    [&length.to_le_bytes()[..], &[0; 4], &unique.to_le_bytes(), &[0; 24], content].concat()
}

fn answer(unique: u64, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + content.len()).unwrap();
    [&length.to_le_bytes()[..], &[0; 4], &unique.to_le_bytes(), content].concat()
}

/// All that the server has got.
fn heard(server: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // It ends with nothing being there.
    let _ = server.read_to_end(&mut bytes);
    bytes
}

fn turn(driver: &Driver<FileSystem>) {
    driver.transport.turn(FileSystem::socket_ready);
}

#[test]
fn requests_are_answered_one_after_the_other() {
    let (mut driver, mut server) = device();
    let first = driver.request(REQUESTS, &[&message(1, b"")[..16], &message(1, b"")[16..]], &[16, 8])[0];
    assert_eq!(heard(&mut server), message(1, b""));
    assert!(driver.answers(REQUESTS).is_empty());
    server.write_all(&answer(1, b"content")[..20]).unwrap();
    turn(&driver);
    assert!(driver.answers(REQUESTS).is_empty(), "half of an answer is none");
    server.write_all(&answer(1, b"content")[20..]).unwrap();
    turn(&driver);
    assert_eq!(driver.answers(REQUESTS), [(0, 23)]);
    assert_eq!(driver.bytes(first, 16), answer(1, b"content")[..16]);
    assert_eq!(driver.read(0x60), 1);
}

#[test]
fn what_is_long_goes_in_pieces() {
    let (mut driver, mut server) = device();
    let content: Vec<u8> = (0..1_u32 << 20).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let place = driver.request(REQUESTS, &[&message(7, &content)], &[16])[0];
    let mut all = Vec::new();
    while all.len() < 40 + content.len() {
        all.extend(heard(&mut server));
        turn(&driver);
    }
    assert!(all == message(7, &content));
    server.write_all(&answer(7, b"")).unwrap();
    turn(&driver);
    assert_eq!((driver.answers(REQUESTS), driver.bytes(place, 16)), (vec![(0, 16)], answer(7, b"")));
    driver.next_buffer_from_start();
    let place = driver.request(REQUESTS, &[&message(8, b"")], &[16, content.len()]);
    heard(&mut server);
    let long = answer(8, &content);
    let mut sent = 0;
    while driver.answers(REQUESTS).is_empty() {
        sent += server.write(&long[sent..]).unwrap_or(0);
        turn(&driver);
    }
    assert!(driver.bytes(place[1], content.len()) == content);
}

#[test]
fn what_nobody_waits_for_is_over_when_it_is_sent_and_waits_for_its_turn() {
    let (mut driver, mut server) = device();
    driver.request(REQUESTS, &[&message(1, b"")], &[16]);
    driver.request(PRIORITY, &[&message(2, b"forget")], &[]);
    assert!(driver.answers(PRIORITY).is_empty());
    assert_eq!(heard(&mut server), message(1, b""));
    server.write_all(&answer(1, b"")).unwrap();
    turn(&driver);
    assert_eq!((driver.answers(REQUESTS), driver.answers(PRIORITY)), (vec![(0, 16)], vec![(0, 0)]));
    assert_eq!(heard(&mut server), message(2, b"forget"));
}

#[test]
fn a_machine_that_stands_gets_its_answer_later() {
    let (mut driver, mut server) = device();
    driver.request(REQUESTS, &[&message(1, b"")], &[16]);
    driver.transport.set_running(false);
    server.write_all(&answer(1, b"")).unwrap();
    turn(&driver);
    assert!(driver.answers(REQUESTS).is_empty());
    driver.transport.set_running(true);
    driver.transport.serve(REQUESTS);
    assert_eq!(driver.answers(REQUESTS), [(0, 16)]);
}

#[test]
fn a_server_that_is_gone_or_mad_is_not_connected() {
    let not_connected =
        |unique: u64| [&16_u32.to_le_bytes()[..], &(-libc::ENOTCONN).to_le_bytes(), &unique.to_le_bytes()].concat();
    for last_words in [&b""[..], &answer(2, b""), &[15, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[0xff; 16]] {
        let (mut driver, mut server) = device();
        let first = driver.request(REQUESTS, &[&message(1, b"")], &[16])[0];
        server.write_all(last_words).unwrap();
        if last_words.is_empty() {
            drop(server);
        }
        turn(&driver);
        assert_eq!((driver.answers(REQUESTS), driver.bytes(first, 16)), (vec![(0, 16)], not_connected(1)));
        let second = driver.request(REQUESTS, &[&message(3, b"")], &[16])[0];
        driver.request(PRIORITY, &[&message(4, b"")], &[]);
        assert_eq!((driver.answers(REQUESTS), driver.bytes(second, 16)), (vec![(0, 16)], not_connected(3)));
        assert_eq!(driver.answers(PRIORITY), [(0, 0)]);
    }
}

#[test]
fn a_driver_that_begins_anew_gets_none_of_the_answers_before() {
    let (mut driver, mut server) = device();
    driver.request(REQUESTS, &[&message(1, b"")], &[16]);
    driver.write(0x70, 0);
    driver.again();
    let place = driver.request(REQUESTS, &[&message(2, b"")], &[16])[0];
    server.write_all(&answer(1, b"")).unwrap();
    turn(&driver);
    assert!(driver.answers(REQUESTS).is_empty());
    assert_eq!(heard(&mut server), [message(1, b""), message(2, b"")].concat());
    server.write_all(&answer(2, b"")).unwrap();
    turn(&driver);
    assert_eq!((driver.answers(REQUESTS), driver.bytes(place, 16)), (vec![(0, 16)], answer(2, b"")));
}

#[test]
fn what_is_no_request_stops_the_device() {
    let mut longer = message(1, b"x");
    longer.pop();
    for (readable, writable) in [
        (vec![0; 39], vec![16]),
        (message(1, b"")[..39].to_vec(), vec![]),
        (longer, vec![16]),
        (message(1, b""), vec![15]),
    ] {
        let (mut driver, mut server) = device();
        driver.request(REQUESTS, &[&readable], &writable);
        assert!(driver.gave_up(), "{readable:?}");
        assert!(heard(&mut server).is_empty());
    }
}

#[test]
fn nonsense_does_no_harm() {
    torment(|| FileSystem::new(UnixStream::pair().unwrap().0.into()), 300);
}
