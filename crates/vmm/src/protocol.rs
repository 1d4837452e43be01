//! What `uvm` and a VMM process say to each other, over a pair of UNIX sockets of type SEQPACKET: one message a packet, with
//! descriptors beside it. The VMM trusts `uvm`, which made it; `uvm` believes nothing of a VMM, whose guest is hostile.
//!
//! ```text
//! uvm ── Prepare ──▶ vmm                              the first message makes a machine without memory; not answered
//!     ── Boot | Fork ──▶         Done | Failed        gives it what it lacks; it is paused
//!     ── Resume, Pause, Rebind, RebindSlot, LimitNetwork, Console, Stand ──▶    any number of times
//!     ── Freeze ──▶                                   Done, and the process ends
//!     ◀── Ended ──                                    at any time, once: the guest's own doing
//! ```

pub mod socket;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest message: a console's last output and some.
pub const MOST_BYTES: usize = 96 * 1024;
/// Descriptors beside one message. More come before it, by [`Request::Descriptors`].
pub const MOST_DESCRIPTORS: usize = 64;
/// Descriptors for one request in all: a packed disk of 255 layers with head and tail, and the machine's own.
pub const MOST_GATHERED: usize = 300;

/// What a machine consists of. Shape: memory a multiple of 1 MiB; 1 to 64 processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Number of processors.
    pub vcpus: u32,
    /// Number of disk slots.
    pub disk_slots: u32,
    /// How many of them each container has, at least one; the first of each can be written.
    pub slots_per_container: u32,
    /// Capacity of each, bytes, whatever is behind it.
    pub disk_bytes: u64,
    /// Number of network slots.
    pub network_slots: u32,
}

impl MachineSpec {
    /// True for a slot whose disk can be written.
    #[must_use]
    pub fn is_writable(&self, slot: u32) -> bool {
        slot.is_multiple_of(self.slots_per_container.max(1))
    }

    /// True for the machine of one container. Several, whose folders come and go, would need a device each, and the disks take
    /// its interrupt.
    #[must_use]
    pub fn has_file_system(&self) -> bool {
        self.disk_slots <= self.slots_per_container
    }

    /// True for the machine of one container, too: whoever is connected with is to be that one.
    #[must_use]
    pub fn has_socket(&self) -> bool {
        self.has_file_system()
    }
}

/// A disk for a slot: its files come beside the message, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// It is never written, whatever the guest says.
    pub read_only: bool,
    /// Bytes of each file.
    pub parts: Vec<u64>,
}

/// How fast a machine's disks, all together, may be read and written, each a second. Nothing is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRates {
    /// Bytes read.
    pub read_bytes: Option<NonZeroU64>,
    /// Bytes written.
    pub write_bytes: Option<NonZeroU64>,
    /// Requests that read.
    pub read_requests: Option<NonZeroU64>,
    /// Requests that write or discard.
    pub write_requests: Option<NonZeroU64>,
}

/// How fast frames may pass one network slot, each a second. Nothing is no limit. Shape: bytes of frames without virtio's header; what
/// the host cuts into several frames counts as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRates {
    /// Bytes to the guest.
    pub receive_bytes: Option<NonZeroU64>,
    /// Bytes from the guest.
    pub send_bytes: Option<NonZeroU64>,
    /// Frames to the guest.
    pub receive_frames: Option<NonZeroU64>,
    /// Frames from the guest.
    pub send_frames: Option<NonZeroU64>,
}

/// Runs of pages in one working set: they fit into a message many times.
pub const MOST_RUNS: usize = 4096;

/// Pages of the memory's file, one after the other. Shape: 4 KiB each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Number of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What `uvm` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Takes descriptors for the next request. Not answered.
    Descriptors,
    /// Makes a machine, as far as that needs neither its memory nor what is behind its slots, beside what its maker does meanwhile. Not
    /// answered; what fails is the answer to the next request. Descriptors: `/dev/kvm`, the port's socket, the file system's, the socket
    /// device's, which is of type SEQPACKET ([`socket`]).
    Prepare {
        /// The machine.
        machine: MachineSpec,
    },
    /// Has the machine boot. Descriptors: memory, kernel, initramfs, then a tap for each network slot, or none.
    Boot {
        /// The kernel's command line.
        command_line: String,
    },
    /// Makes it the copy of a frozen machine of its size. Descriptors: memory, state, then the disks' files, then a tap for each network
    /// slot, or none. A tap has virtio's header, and does not block.
    Fork {
        /// What is behind its slots, slot 0 first; as many as there are slots.
        disks: Vec<Option<DiskSpec>>,
        /// How fast they may be.
        rates: DiskRates,
        /// Pages of the memory that it will write before long, and that are to be its own at once.
        working_set: Vec<PageRun>,
    },
    /// Lets the processors run.
    Resume,
    /// Stops them.
    Pause,
    /// Puts other disks behind all slots. Descriptors: the disks' files.
    Rebind {
        /// As for a fork.
        disks: Vec<Option<DiskSpec>>,
        /// As for a fork.
        rates: DiskRates,
    },
    /// Puts another disk behind one slot. Descriptors: the disk's files.
    RebindSlot {
        /// Which.
        slot: u32,
        /// Nothing, or what is behind it from now on.
        disk: Option<DiskSpec>,
    },
    /// Limits how fast a network slot may be, from now on. A new machine has no limits.
    LimitNetwork {
        /// Which.
        slot: u32,
        /// The new limits.
        rates: NetworkRates,
    },
    /// Stops the machine and says where it stands: what was waiting for what. For diagnosis.
    Stand,
    /// Stops the machine and writes all but its memory. Descriptor: the file, empty.
    Freeze,
    /// Asks for the console's last output.
    Console,
}

/// Why a guest's machine stands for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEnd {
    /// It was reset, which a panic does.
    Reset,
    /// It was switched off.
    PowerOff,
    /// A processor cannot go on.
    Fault(String),
}

/// What a VMM says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The request is done.
    Done,
    /// The console's last output.
    Console(Vec<u8>),
    /// Where the machine stands, for a person.
    Standing(String),
    /// The request failed; the process is of no use any more.
    Failed(String),
    /// No answer: the guest's end.
    Ended(GuestEnd),
}

/// Sends one message. When: blocks as the socket does.
///
/// # Errors
/// When the socket fails, or would block.
pub fn send(socket: impl AsFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MOST_BYTES || descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and what came beside it; nothing when the other side is gone.
///
/// # Errors
/// When the socket fails or would block, or when that is no message: too long, more descriptors than allowed, or not `M`.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let socket = socket.as_fd();
    // Most messages are a few bytes, and room for the longest would be as many pages to clear.
    let length =
        recvmsg(socket, &mut [], &mut RecvAncillaryBuffer::default(), RecvFlags::PEEK | RecvFlags::TRUNC)?.bytes;
    let mut bytes = vec![0; length.min(MOST_BYTES)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)?;
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let message = postcard::from_bytes(&bytes[..received.bytes]);
    Ok(Some((message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (one, other) = pair();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let request = Request::Rebind {
            disks: vec![None, Some(DiskSpec { read_only: true, parts: vec![512] })],
            rates: DiskRates { read_bytes: NonZeroU64::new(7), ..DiskRates::default() },
        };
        send(&one, &request, &[writer.as_fd()]).unwrap();
        send(&one, &Request::Pause, &[]).unwrap();
        let (message, mut descriptors) = receive::<Request>(&other).unwrap().unwrap();
        assert_eq!(message, request);
        File::from(descriptors.remove(0)).write_all(b"x").unwrap();
        writer.flush().unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(receive::<Request>(&other).unwrap().unwrap().0, Request::Pause);
        drop(one);
        assert!(receive::<Request>(&other).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (one, other) = pair();
        let mut random = 1_u64;
        for length in 1..2000 {
            let byte = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            };
            let bytes: Vec<u8> = std::iter::repeat_with(byte).take(length).collect();
            rustix::io::write(&one, &bytes).unwrap();
            // Whatever it says, it comes back, and what follows is read from its begin.
            let _ = receive::<Request>(&other);
            send(&one, &Reply::Done, &[]).unwrap();
            assert_eq!(receive::<Reply>(&other).unwrap().unwrap().0, Reply::Done);
        }
        let many: Vec<BorrowedFd> = std::iter::repeat_n(one.as_fd(), MOST_DESCRIPTORS + 1).collect();
        send(&one, &Request::Descriptors, &many).unwrap_err();
    }
}
