//! Each device between a driver and a host that do anything in any order.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes as _, GuestAddress};

use super::balloon::Balloon;
use super::block::Block;
use super::block::disk::Disk;
use super::console::Console;
use super::device::{Queues, VirtioDevice};
use super::entropy::Entropy;
use super::file_system::FileSystem;
use super::network::Network;
use super::queue::QueueError;
use super::socket::Socket;
use super::transport::{Transport, TransportState};
use crate::fuzz_input::Input;
use crate::memory::{self, GRANULE, GuestMemory, Writes};
use crate::protocol::socket::{FromDevice, ToDevice};
use crate::protocol::{self, NetworkRates};

/// Bytes of the guest's memory.
const MEMORY: u64 = 2 * GRANULE;
/// Entries of each queue as it is set up; the driver may set it up otherwise.
const SIZE: u16 = 16;
/// Where buffers are.
const BUFFERS: u64 = 0x10_0000;
/// Bytes of the disk.
const DISK: u64 = 64 * 512;
/// Steps of one run.
const MOST_STEPS: usize = 300;

/// A file in memory.
pub(crate) fn file(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_len(bytes).expect("a file in memory takes a length");
    file
}

/// Memory of one run.
pub(crate) fn memory(bytes: u64) -> Arc<GuestMemory> {
    memory::map(file(bytes), bytes, Writes::Private).expect("a file in memory is mapped")
}

/// Two sockets of type SEQPACKET that do not block.
pub(crate) fn seqpacket() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("two sockets")
}

/// A disk slot with a disk that can be written.
pub fn block(data: &[u8]) {
    let mut block = Block::new(0, false, 1 << 30);
    block.bind(Disk::new(vec![(file(DISK), DISK)], false).ok());
    run(block, data, |_, _| Ok(()), |_| {});
}

/// The console, and a host that says anything.
pub fn console(data: &[u8]) {
    let (mut host, guest) = UnixStream::pair().expect("two sockets");
    for socket in [&host, &guest] {
        socket.set_nonblocking(true).expect("a socket that does not block");
    }
    let talk = move |bytes: &[u8]| {
        // What does not fit is not said.
        let _ = host.write(bytes);
        let _ = host.read(&mut [0; 4096]);
    };
    run(Console::new(guest.into()), data, Console::socket_ready, talk);
}

/// The file system, and a server that says anything.
pub fn file_system(data: &[u8]) {
    let (mut server, device) = UnixStream::pair().expect("two sockets");
    server.set_nonblocking(true).expect("a socket that does not block");
    let talk = move |bytes: &[u8]| {
        let _ = server.write(bytes);
        let _ = server.read(&mut [0; 4096]);
    };
    run(FileSystem::new(device.into()), data, FileSystem::socket_ready, talk);
}

/// The balloon.
pub fn balloon(data: &[u8]) {
    run(Balloon, data, |_, _| Ok(()), |_| {});
}

/// The entropy device.
pub fn entropy(data: &[u8]) {
    run(Entropy, data, |_, _| Ok(()), |_| {});
}

/// A network slot with a tap through which anything comes, at one of some rates.
pub fn network(data: &[u8]) {
    let (host, guest) = seqpacket();
    let mut host = File::from(host);
    let talk = move |bytes: &[u8]| {
        let _ = host.write(bytes);
        let _ = host.read(&mut [0; 4096]);
    };
    let mut network = Network::behind(0, Some(guest.into()));
    // Few enough that frames wait, and come again.
    let rate = |shift: u8| NonZeroU64::new(u64::from(data.first().copied().unwrap_or(0) >> shift & 3) * 1000);
    network.limit(NetworkRates { receive_frames: rate(0), send_bytes: rate(2), ..NetworkRates::default() });
    run(network, data, Network::receive, talk);
}

/// The socket device, a host that connects, accepts and refuses, and programs of the host that say anything and hang up.
pub fn socket(data: &[u8]) {
    let (host, device) = seqpacket();
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut asked = 0;
    let talk = move |bytes: &[u8]| {
        while let Ok(Some((FromDevice::Wanted { number, .. }, _))) = protocol::receive(&host) {
            asked = number;
        }
        let Some((&kind, rest)) = bytes.split_first() else { return };
        let port = u32::from(rest.first().copied().unwrap_or(0) % 4);
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        ours.set_nonblocking(true).expect("a socket that does not block");
        // What the device does not take is not said.
        let _ = match kind % 8 {
            0 | 1 => protocol::send(&host, &ToDevice::Connect { port }, &[theirs.as_fd()]),
            2 => protocol::send(&host, &ToDevice::Answer { number: asked }, &[theirs.as_fd()]),
            3 => protocol::send(&host, &ToDevice::Answer { number: port }, &[]),
            4 => rustix::io::write(&host, rest).map(drop).map_err(Into::into),
            5 => {
                drop(programs.pop());
                Ok(())
            }
            _ => programs.iter_mut().try_for_each(|program| {
                let _ = program.read(&mut [0; 4096]);
                program.write(rest).map(drop)
            }),
        };
        if kind % 8 < 3 && programs.len() < 8 {
            programs.push(ours);
        }
    };
    let Ok(socket) = Socket::new(device) else { return };
    run(socket, data, Socket::go_on, talk);
}

fn run<D: VirtioDevice>(
    device: D,
    data: &[u8],
    mut ready: impl FnMut(&mut D, &mut Queues<'_>) -> Result<(), QueueError>,
    mut talk: impl FnMut(&[u8]),
) {
    let (mut input, memory) = (Input(data), memory(MEMORY));
    let Ok(transport) = Transport::new(device, Arc::clone(&memory)) else { return };
    let driver = Driver { transport, memory };
    driver.transport.set_running(true);
    driver.begin(input.byte().is_some_and(|byte| byte & 1 == 0));
    for _ in 0..MOST_STEPS {
        if driver.step(&mut input, &mut ready, &mut talk).is_none() {
            break;
        }
    }
    // Whatever was done, it begins anew.
    driver.write(0x70, 0);
    driver.begin(true);
    assert_eq!(driver.status(), 15);
}

struct Driver<D> {
    transport: Transport<D>,
    memory: Arc<GuestMemory>,
}

impl<D: VirtioDevice> Driver<D> {
    /// Sets the device up as a driver does.
    fn begin(&self, event_indices: bool) {
        for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0)] {
            self.write(register, value);
        }
        let features = u32::try_from((1_u64 << 28) | u64::from(event_indices) << 29).unwrap_or(0);
        self.write(0x20, features);
        self.write(0x70, 11);
        for (number, queue) in (0_u32..).zip(D::QUEUES) {
            self.write(0x30, number);
            self.write(0x38, u32::from(SIZE.min(*queue)));
            for (register, part) in [(0x80, 0), (0x90, 1), (0xa0, 2)] {
                self.write(register, ring(number, part));
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    fn step(
        &self,
        input: &mut Input<'_>,
        ready: &mut impl FnMut(&mut D, &mut Queues<'_>) -> Result<(), QueueError>,
        talk: &mut impl FnMut(&[u8]),
    ) -> Option<()> {
        match input.byte()? % 12 {
            0..=2 => self.describe(input)?,
            3 | 4 => self.offer(queue::<D>(input)?, input.half()?),
            5 => self.request(input)?,
            6 => {
                let address = place(input)?;
                // What is no memory is not written.
                let _ = self.memory.write_slice(input.bytes(16), GuestAddress(address));
            }
            7 | 8 => {
                self.transport.serve(usize::try_from(queue::<D>(input)?).ok()?);
            }
            9 => {
                let count = usize::from(input.byte()?);
                talk(input.bytes(count));
                self.transport.turn(&mut *ready);
            }
            10 => {
                let width = usize::from(input.byte()? % 9);
                let offset = input.number()?;
                self.transport.read(offset, &mut vec![0; width]);
                self.transport.write(offset, input.bytes(width));
            }
            _ => {
                let running = input.byte()? & 1 == 0;
                self.transport.set_running(running);
                let state = postcard::to_stdvec(&self.transport.save()).unwrap_or_default();
                let again = postcard::from_bytes::<TransportState<D::State>>(&state);
                assert!(again.is_ok(), "what is frozen can be read");
            }
        }
        Some(())
    }

    fn describe(&self, input: &mut Input<'_>) -> Option<()> {
        let entry = u64::from(input.byte()? % 32);
        let table = match input.byte()? {
            0..=199 => u64::from(ring(queue::<D>(input)?, 0)),
            _ => place(input)?,
        };
        let (address, length) = (place(input)?, u32::try_from(input.number()? & 0xffff_ffff).ok()?);
        let (flags, next) = (u16::from(input.byte()? & 7), u16::from(input.byte()? % 20));
        self.put(table.checked_add(16 * entry)?, address, length, (flags, next));
        Some(())
    }

    fn put(&self, at: u64, address: u64, length: u32, (flags, next): (u16, u16)) {
        let halves = [flags.to_le_bytes(), next.to_le_bytes()].concat();
        let bytes = [&address.to_le_bytes()[..], &length.to_le_bytes(), &halves].concat();
        let _ = self.memory.write_slice(&bytes, GuestAddress(at));
    }

    /// Makes the request at this entry available.
    fn offer(&self, queue: u32, head: u16) {
        let available = u64::from(ring(queue, 1));
        let index: u16 = self.memory.read_obj(GuestAddress(available + 2)).unwrap_or(0);
        let entry = available + 4 + 2 * u64::from(index % SIZE);
        let head = if head < 0xff00 { head % SIZE } else { head };
        let _ = self.memory.write_obj(head, GuestAddress(entry));
        let _ = self.memory.write_obj(index.wrapping_add(1), GuestAddress(available + 2));
    }

    /// A request as a driver makes it: something to read, then room.
    fn request(&self, input: &mut Input<'_>) -> Option<()> {
        let queue = queue::<D>(input)?;
        let (readable, writable) = (input.byte()? % 3, input.byte()? % 3);
        let count = u16::from(readable + writable);
        for number in 0..count {
            let address = BUFFERS + 0x1_0000 * u64::from(number);
            let length = if number < u16::from(readable) {
                let bytes = input.byte().map_or(0, usize::from);
                let content = input.bytes(bytes);
                let _ = self.memory.write_slice(content, GuestAddress(address));
                u32::try_from(content.len()).ok()?
            } else {
                u32::from(input.half()?)
            };
            let flags = u16::from(number + 1 < count) | if number < u16::from(readable) { 0 } else { 2 };
            self.put(u64::from(ring(queue, 0)) + 16 * u64::from(number), address, length, (flags, number + 1));
        }
        self.offer(queue, 0);
        self.transport.serve(usize::try_from(queue).ok()?);
        Some(())
    }

    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(0x70, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// Where a part of a queue is: descriptors, available ring, used ring.
fn ring(queue: u32, part: u32) -> u32 {
    0x1_0000 * (queue + 1) + 0x4000 * part
}

fn queue<D: VirtioDevice>(input: &mut Input<'_>) -> Option<u32> {
    Some(u32::from(input.byte()?) % u32::try_from(D::QUEUES.len()).ok()?)
}

/// An address: in a ring, in a buffer, or anywhere.
fn place(input: &mut Input<'_>) -> Option<u64> {
    match input.byte()? {
        0..=79 => {
            let begin = u64::from(ring(u32::from(input.byte()? % 4), u32::from(input.byte()? % 3)));
            Some(begin.wrapping_add(input.number()?))
        }
        80..=219 => Some(BUFFERS + u64::from(input.half()?)),
        _ => input.number(),
    }
}
