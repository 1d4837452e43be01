use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::connection::ROOM;
use super::packet::{HOST, NO_RECEIVE, NO_SEND};
use super::*;
use crate::virtio::fuzzing::seqpacket;
use crate::virtio::testing::{Driver, WRITE, torment};

/// A port of the guest's, and one of the host's.
const KEY: Key = Key { guest: 1000, host: 52 };

/// A device in use, its guest and its host.
struct Sides {
    driver: Driver<Socket>,
    host: OwnedFd,
}

fn sides() -> Sides {
    let (host, device) = seqpacket();
    Sides { driver: Driver::new(Socket::new(device).unwrap()), host }
}

/// What the guest says on a connection, with as much room as Linux has.
fn from_guest(key: Key, operation: Operation) -> Header {
    let Header { source_cid, destination_cid, .. } = Header::to_guest(key, operation);
    let (source_port, destination_port) = (key.guest, key.host);
    let header = Header::to_guest(key, operation);
    Header {
        source_cid: destination_cid,
        destination_cid: source_cid,
        source_port,
        destination_port,
        room: 1 << 18,
        ..header
    }
}

impl Sides {
    /// The guest says something.
    fn say(&mut self, header: Header, data: &[u8]) {
        self.driver.next_buffer_from_start();
        let header = Header { length: u32::try_from(data.len()).unwrap(), ..header };
        self.say_exactly(&header, data);
    }

    fn say_exactly(&mut self, header: &Header, data: &[u8]) {
        if data.is_empty() {
            self.driver.request(TRANSMIT, &[&header.bytes()], &[]);
        } else {
            self.driver.request(TRANSMIT, &[&header.bytes(), data], &[]);
        }
    }

    fn says(&mut self, operation: Operation) {
        self.say(from_guest(KEY, operation), b"");
    }

    /// The next packet that the guest gets, if there is one. One buffer at a time, as large as Linux's.
    fn hears(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut answers = self.driver.answers(RECEIVE);
        if answers.is_empty() {
            // A buffer may wait already.
            if !self.waiting_buffer() {
                self.offer_buffer();
            }
            self.driver.transport.turn(Socket::go_on);
            answers = self.driver.answers(RECEIVE);
        }
        let (_, written) = *answers.first()?;
        Some(self.read(written))
    }

    fn waiting_buffer(&self) -> bool {
        self.driver.transport.standing().is_some_and(|standing| standing.contains("in queue 0"))
    }

    fn offer_buffer(&mut self) {
        let place = PLACE;
        self.driver.describe(RECEIVE, &[(place, 4096 + 44, WRITE, 0)]);
        self.driver.offer(RECEIVE, 0);
    }

    fn read(&self, written: u32) -> (Header, Vec<u8>) {
        let bytes = self.driver.bytes(PLACE, written as usize);
        (Header::parse(bytes.first_chunk().unwrap()), bytes[HEADER_BYTES..].to_vec())
    }

    fn hears_only(&mut self, operation: Operation) -> Header {
        let (header, data) = self.hears().unwrap_or_else(|| panic!("no {operation:?}"));
        assert_eq!((header.operation, data.len()), (operation, 0));
        header
    }

    /// What the device asks the host.
    fn wanted(&self) -> Option<(u32, u32)> {
        let FromDevice::Wanted { port, number } = receive(&self.host).ok()??.0;
        Some((port, number))
    }

    fn answer(&mut self, number: u32, stream: Option<&UnixStream>) {
        let streams: Vec<BorrowedFd<'_>> = stream.iter().map(|stream| stream.as_fd()).collect();
        send(&self.host, &ToDevice::Answer { number }, &streams).unwrap();
    }

    /// A connection that the guest asked for: the host's end.
    fn open(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        self.says(Operation::Request);
        let (port, number) = self.wanted().unwrap();
        assert_eq!(port, KEY.host);
        self.answer(number, Some(&theirs));
        let header = self.hears_only(Operation::Response);
        assert_eq!((header.source_port, header.destination_port, header.source_cid), (KEY.host, KEY.guest, HOST));
        assert_eq!(header.room as usize, ROOM);
        ours
    }

    fn connections(&self) -> usize {
        self.driver.transport.change(|socket| socket.connections.len())
    }
}

/// Where the buffer for what the guest gets is.
const PLACE: u64 = 3 << 20;

fn is_empty(stream: &mut UnixStream) -> bool {
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn content(count: usize) -> Vec<u8> {
    (0..count).map(|number| u8::try_from(number % 251).unwrap()).collect()
}

#[test]
fn the_guest_connects_and_both_sides_talk() {
    let mut sides = sides();
    let mut program = sides.open();
    sides.say(from_guest(KEY, Operation::Data), b"from the guest");
    let mut bytes = [0; 100];
    assert_eq!(program.read(&mut bytes).unwrap(), 14);
    assert_eq!(&bytes[..14], b"from the guest");
    program.write_all(b"from the host").unwrap();
    let (header, data) = sides.hears().unwrap();
    assert_eq!((header.operation, header.passed, data.as_slice()), (Operation::Data, 14, &b"from the host"[..]));
    assert!(sides.hears().is_none());
}

#[test]
fn the_host_connects_and_learns_its_port_once_the_guest_has_answered() {
    let mut sides = sides();
    let (mut program, theirs) = UnixStream::pair().unwrap();
    program.set_nonblocking(true).unwrap();
    send(&sides.host, &ToDevice::Connect { port: 7 }, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    let request = sides.hears_only(Operation::Request);
    assert_eq!((request.destination_port, request.destination_cid), (7, GUEST));
    assert!(request.source_port >= FIRST_HOST_PORT && is_empty(&mut program));
    let key = Key { guest: 7, host: request.source_port };
    sides.say(from_guest(key, Operation::Response), b"");
    let mut line = [0; 64];
    let count = program.read(&mut line).unwrap();
    assert_eq!(&line[..count], format!("OK {}\n", request.source_port).as_bytes());
    // It is no data of the guest's, so it counts in no credit.
    program.write_all(b"x").unwrap();
    let (header, data) = sides.hears().unwrap();
    assert_eq!((header.passed, data.as_slice()), (0, &b"x"[..]));
    // And where nobody listens it is closed.
    let (mut program, theirs) = UnixStream::pair().unwrap();
    send(&sides.host, &ToDevice::Connect { port: 8 }, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    let request = sides.hears_only(Operation::Request);
    sides.say(from_guest(Key { guest: 8, host: request.source_port }, Operation::Reset), b"");
    assert_eq!(program.read(&mut line).unwrap(), 0);
    assert_eq!(sides.connections(), 1);
}

#[test]
fn where_nobody_listens_on_the_host_the_guest_is_refused() {
    let mut sides = sides();
    sides.says(Operation::Request);
    let (_, number) = sides.wanted().unwrap();
    assert!(sides.hears().is_none(), "nothing is said before the host has answered");
    sides.answer(number, None);
    sides.hears_only(Operation::Reset);
    assert_eq!(sides.connections(), 0);
    // An answer that nobody waits for any more.
    sides.answer(number, Some(&UnixStream::pair().unwrap().0));
    assert!(sides.hears().is_none());
}

#[test]
fn what_the_host_does_not_take_waits_and_its_room_is_told() {
    let mut sides = sides();
    let mut program = sides.open();
    let all = content(4 * ROOM);
    let (mut said, mut got, mut passed) = (0, Vec::new(), 0_u32);
    while got.len() < all.len() {
        // As a driver: no more than the other side has said that it keeps.
        let free = ROOM - (said - passed as usize);
        let more = free.min(all.len() - said).min(4096);
        if more > 0 {
            sides.say(from_guest(KEY, Operation::Data), &all[said..said + more]);
            said += more;
        } else {
            let mut bytes = vec![0; 10_000];
            let count = program.read(&mut bytes).unwrap();
            got.extend_from_slice(&bytes[..count]);
        }
        let kept = sides.driver.transport.change(|socket| socket.connections[&KEY].kept());
        assert!(kept <= ROOM);
        while let Some((header, _)) = sides.hears() {
            assert_eq!(header.operation, Operation::Credit);
            passed = header.passed;
        }
    }
    assert!(got == all);
}

#[test]
fn the_host_waits_for_the_guests_room() {
    let mut sides = sides();
    let mut program = sides.open();
    sides.say(Header { room: 10, ..from_guest(KEY, Operation::Credit) }, b"");
    program.write_all(&content(100)).unwrap();
    let (_, data) = sides.hears().unwrap();
    assert_eq!(data, content(10));
    sides.hears_only(Operation::CreditRequest);
    assert!(sides.hears().is_none(), "it is asked once");
    sides.say(Header { room: 10, passed: 7, ..from_guest(KEY, Operation::Credit) }, b"");
    assert_eq!(sides.hears().unwrap().1, content(100)[10..17]);
    // The guest asks in turn.
    sides.says(Operation::CreditRequest);
    let (header, _) = sides.hears().unwrap();
    assert_eq!(header.room as usize, ROOM);
}

#[test]
fn each_half_is_closed_by_itself() {
    let mut sides = sides();
    let mut program = sides.open();
    sides.say(from_guest(KEY, Operation::Data), b"last");
    sides.say(Header { flags: NO_SEND, ..from_guest(KEY, Operation::Shutdown) }, b"");
    let mut bytes = [0; 10];
    assert_eq!((program.read(&mut bytes).unwrap(), program.read(&mut bytes).unwrap()), (4, 0));
    program.write_all(b"answer").unwrap();
    assert_eq!(sides.hears().unwrap().1, b"answer");
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert_ne!(sides.hears_only(Operation::Shutdown).flags & NO_SEND, 0);
    // The guest has closed it now, and waits to hear that it is over.
    sides.say(Header { flags: NO_SEND | NO_RECEIVE, ..from_guest(KEY, Operation::Shutdown) }, b"");
    sides.hears_only(Operation::Reset);
    assert_eq!(sides.connections(), 0);
}

#[test]
fn a_program_of_the_host_that_is_gone_is_told() {
    let mut sides = sides();
    let mut program = sides.open();
    program.write_all(b"last").unwrap();
    drop(program);
    assert_eq!(sides.hears().unwrap().1, b"last");
    let mut flags = 0;
    while let Some((header, _)) = sides.hears() {
        assert_eq!(header.operation, Operation::Shutdown);
        flags |= header.flags;
    }
    assert_eq!(flags, NO_SEND | NO_RECEIVE);
    // What the guest still says is lost, and costs nothing.
    sides.say(from_guest(KEY, Operation::Data), &content(4096));
    assert_eq!(sides.driver.transport.change(|socket| socket.connections[&KEY].kept()), 0);
    sides.says(Operation::Reset);
    assert_eq!(sides.connections(), 0);
    assert!(sides.hears().is_none(), "a reset is not answered");
}

#[test]
fn what_a_closing_guest_has_sent_arrives() {
    let mut sides = sides();
    let mut program = sides.open();
    let all = content(ROOM);
    for part in all.chunks(4096) {
        sides.say(from_guest(KEY, Operation::Data), part);
    }
    sides.say(Header { flags: NO_SEND | NO_RECEIVE, ..from_guest(KEY, Operation::Shutdown) }, b"");
    let mut got = Vec::new();
    // A socket keeps less than that in all.
    while !got.is_empty() || sides.connections() > 0 || got.len() < all.len() {
        let mut bytes = vec![0; 4096];
        match program.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => got.extend_from_slice(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        sides.hears();
    }
    assert!(got == all, "{}", got.len());
    assert_eq!(sides.connections(), 0);
}

#[test]
fn f95_more_than_the_room_that_there_is_ends_the_connection() {
    let mut sides = sides();
    let program = sides.open();
    let mut said = 0;
    // Until the socket's own buffer, and then the device's, are full.
    while sides.connections() == 1 && said < 64 * ROOM {
        sides.say(from_guest(KEY, Operation::Data), &content(4096));
        said += 4096;
        let over = sides.driver.transport.change(|socket| socket.connections[&KEY].phase() == Phase::Over);
        if over {
            break;
        }
        let kept = sides.driver.transport.change(|socket| socket.connections[&KEY].kept());
        assert!(kept <= ROOM, "{kept}");
    }
    assert!(said > ROOM && said < 64 * ROOM, "{said}");
    while let Some((header, _)) = sides.hears() {
        assert!(matches!(header.operation, Operation::Credit | Operation::Reset));
    }
    assert_eq!(sides.connections(), 0);
    drop(program);
}

#[test]
fn f95_a_length_that_is_not_there_ends_the_connection() {
    for length in [5, u32::MAX, u32::try_from(ROOM).unwrap() + 1] {
        let mut sides = sides();
        let mut program = sides.open();
        sides.say_exactly(&Header { length, ..from_guest(KEY, Operation::Data) }, b"four");
        sides.hears_only(Operation::Reset);
        assert_eq!(program.read(&mut [0; 8]).unwrap(), 0, "nothing of it is passed on");
    }
}

#[test]
fn f95_a_foreign_number_a_bad_kind_and_a_bad_operation_are_refused() {
    let mut sides = sides();
    let request = from_guest(KEY, Operation::Request);
    // Somebody else's number has no answer.
    for source_cid in [0, 1, HOST, 4, u64::MAX] {
        sides.say(Header { source_cid, ..request }, b"");
        assert!(sides.hears().is_none() && sides.wanted().is_none());
    }
    for wrong in [
        Header { destination_cid: 1, ..request },
        Header { destination_cid: u64::MAX, ..request },
        Header { destination_cid: GUEST, ..request },
        Header { kind: 2, ..request },
        Header { kind: 0, ..request },
        Header { destination_port: u32::MAX, ..request },
        Header { operation: Operation::Unknown, ..request },
        Header { operation: Operation::Response, ..request },
        Header { operation: Operation::Data, ..request },
        Header { operation: Operation::Shutdown, ..request },
        Header { operation: Operation::Credit, ..request },
    ] {
        sides.say(wrong, b"");
        let reset = sides.hears_only(Operation::Reset);
        assert_eq!((reset.destination_cid, reset.destination_port), (GUEST, KEY.guest));
        assert_eq!((reset.source_cid, reset.source_port), (wrong.destination_cid, wrong.destination_port));
        assert!(sides.wanted().is_none() && sides.connections() == 0);
        // A reset of the guest's is never answered with one.
        sides.say(Header { operation: Operation::Reset, ..wrong }, b"");
        assert!(sides.hears().is_none());
    }
}

#[test]
fn f95_what_cannot_be_said_now_ends_the_connection() {
    for operation in [Operation::Request, Operation::Response, Operation::Unknown] {
        let mut sides = sides();
        let mut program = sides.open();
        sides.says(operation);
        sides.hears_only(Operation::Reset);
        assert_eq!((program.read(&mut [0; 8]).unwrap(), sides.connections()), (0, 0));
    }
    // Before the host has answered, and after the guest has said that it sends no more.
    let mut sides = sides();
    sides.says(Operation::Request);
    sides.say(from_guest(KEY, Operation::Data), b"early");
    sides.hears_only(Operation::Reset);
    let (_, number) = sides.wanted().unwrap();
    let (mut program, theirs) = UnixStream::pair().unwrap();
    sides.answer(number, Some(&theirs));
    drop(theirs);
    assert!(sides.hears().is_none());
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    sides.open();
    sides.say(Header { flags: NO_SEND, ..from_guest(KEY, Operation::Shutdown) }, b"");
    sides.say(from_guest(KEY, Operation::Data), b"late");
    sides.hears_only(Operation::Reset);
}

#[test]
fn f95_credit_that_cannot_be_is_none() {
    let mut sides = sides();
    let mut program = sides.open();
    // More passed on than was ever sent.
    sides.say(Header { room: 100, passed: 50, ..from_guest(KEY, Operation::Credit) }, b"");
    program.write_all(&content(300)).unwrap();
    sides.hears_only(Operation::CreditRequest);
    assert!(sides.hears().is_none());
    sides.say(Header { room: u32::MAX, passed: 0, ..from_guest(KEY, Operation::Credit) }, b"");
    assert_eq!(sides.hears().unwrap().1, content(300));
}

#[test]
fn f95_connections_and_answers_are_bounded() {
    let mut sides = sides();
    let room = |sides: &Sides| sides.driver.transport.change(|socket| (socket.connections.len(), socket.strays.len()));
    // Ten more than there is room for.
    for port in 0..u32::try_from(MOST + MOST_STRAYS + 10).unwrap() {
        sides.say(from_guest(Key { guest: port, host: 1 }, Operation::Request), b"");
        sides.driver.answers(TRANSMIT);
        let (connections, strays) = room(&sides);
        assert!(connections <= MOST && strays <= MOST_STRAYS);
    }
    // No buffers were given: what would need an answer waits in the guest's queue.
    assert_eq!(room(&sides), (MOST, MOST_STRAYS));
    let standing = sides.driver.transport.standing().unwrap();
    assert!(standing.contains("in queue 1"), "{standing}");
    // With buffers it goes on where it stood.
    let mut resets = 0;
    while let Some((header, _)) = sides.hears() {
        assert_eq!(header.operation, Operation::Reset);
        resets += 1;
    }
    assert_eq!(resets, MOST_STRAYS + 10);
    assert_eq!(room(&sides), (MOST, 0));
    // The host's programs find no room either, and are told so.
    let (mut program, theirs) = UnixStream::pair().unwrap();
    send(&sides.host, &ToDevice::Connect { port: 1 }, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    assert!(sides.hears().is_none());
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn f95_a_packet_without_header_and_a_buffer_without_room_stop_the_device() {
    let mut one = sides();
    one.driver.request(TRANSMIT, &[&[0; HEADER_BYTES - 1]], &[]);
    assert!(one.driver.gave_up());
    let mut other = sides();
    other.says(Operation::Data);
    other.driver.request(RECEIVE, &[], &[HEADER_BYTES]);
    assert!(other.driver.gave_up());
}

#[test]
fn a_driver_that_begins_anew_has_no_connections() {
    let mut sides = sides();
    let mut program = sides.open();
    sides.driver.write(0x70, 0);
    assert_eq!((program.read(&mut [0; 8]).unwrap(), sides.connections()), (0, 0));
    sides.driver.again();
    sides.open();
}

#[test]
fn a_machine_that_stands_hears_of_it_later() {
    let mut sides = sides();
    let mut program = sides.open();
    sides.driver.transport.set_running(false);
    program.write_all(b"meanwhile").unwrap();
    let (_other, theirs) = UnixStream::pair().unwrap();
    send(&sides.host, &ToDevice::Connect { port: 7 }, &[theirs.as_fd()]).unwrap();
    assert!(sides.hears().is_none());
    sides.driver.transport.set_running(true);
    let heard: Vec<Operation> = std::iter::from_fn(|| sides.hears()).map(|(header, _)| header.operation).collect();
    assert_eq!(heard.len(), 2);
    assert!(heard.contains(&Operation::Data) && heard.contains(&Operation::Request), "{heard:?}");
}

#[test]
fn a_host_that_is_gone_refuses() {
    let mut sides = sides();
    let (other, _) = seqpacket();
    sides.host = other;
    sides.says(Operation::Request);
    sides.hears_only(Operation::Reset);
    assert_eq!(sides.connections(), 0);
}

#[test]
fn nonsense_does_no_harm() {
    torment(|| Socket::new(seqpacket().1).unwrap(), 300);
}
