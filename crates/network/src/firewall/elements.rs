//! Elements for sets of nftables, by netlink and without the program: it takes some milliseconds to find out what there is, and a
//! container's start would wait for them.
//!
//! Source: Linux include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h; netlink(7).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// Bytes of a message's own header.
const HEADER: usize = 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The subsystem nftables in the upper byte, its message for new elements in the lower one.
const NEW_ELEMENTS: u16 = (SUBSYSTEM << 8) | 12;
const SUBSYSTEM: u16 = 10;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
/// `NFPROTO_BRIDGE`.
const BRIDGE: u8 = 7;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The kernel has answered when the request was taken; this is for one that never does.
const PATIENCE: Duration = Duration::from_secs(5);

/// New elements of one set: its name, and the elements' bytes in the network's order.
pub(super) type Addition = (String, Vec<Vec<u8>>);

/// Speaks to the nftables of the namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Elements(OwnedFd);

impl Elements {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Adds elements to sets of a table of the bridge family, all or none.
    pub(super) fn add(&self, table: &str, additions: &[Addition]) -> io::Result<()> {
        let (bytes, wanted) = batch(table, additions);
        sendto(&self.0, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut buffer = [0; 8192];
        let mut acknowledged = 0;
        while acknowledged < wanted {
            let (length, _) = recv(&self.0, &mut buffer, RecvFlags::empty())?;
            acknowledged += acknowledgements(buffer.get(..length).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// The request, and how many answers it gets.
fn batch(table: &str, additions: &[Addition]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let additions: Vec<_> = additions.iter().filter(|(_, elements)| !elements.is_empty()).collect();
    message(&mut bytes, BATCH_BEGIN, REQUEST, (0, SUBSYSTEM), &[]);
    for (set, elements) in &additions {
        let list: Vec<u8> =
            elements.iter().flat_map(|key| attribute(1 | NESTED, &attribute(1 | NESTED, &attribute(1, key)))).collect();
        let body = [attribute(1, &text(table)), attribute(2, &text(set)), attribute(3 | NESTED, &list)].concat();
        message(&mut bytes, NEW_ELEMENTS, REQUEST | ACKNOWLEDGE | CREATE, (BRIDGE, 0), &body);
    }
    message(&mut bytes, BATCH_END, REQUEST, (0, SUBSYSTEM), &[]);
    (bytes, additions.len())
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Shape: length and kind, then the value, filled up to a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Shape: `(family, resource)` is the head that all messages of netfilter have.
fn message(bytes: &mut Vec<u8>, kind: u16, flags: u16, (family, resource): (u8, u16), body: &[u8]) {
    let length = u32::try_from(HEADER + 4 + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Number and sender, by which nobody needs to tell them apart.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
}

/// How many requests were carried out, by what the kernel says.
fn acknowledgements(mut answers: &[u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some((head, rest)) = answers.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        if let (ERROR, Some(code)) = (kind, rest.first_chunk::<4>()) {
            match i32::from_ne_bytes(*code) {
                0 => count += 1,
                code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            }
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER).next_multiple_of(4);
        answers = answers.get(length..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed_as_the_kernel_reads_it() {
        let (bytes, wanted) = batch("t", &[("s".into(), vec![vec![1, 2, 3, 4, 5, 6]]), ("empty".into(), Vec::new())]);
        assert_eq!(wanted, 1);
        // Begin and end are bare; between them table, set and one element of 6 bytes in three frames.
        assert_eq!(bytes.len(), 20 + (20 + 8 + 8 + 4 + 4 + 4 + 12) + 20);
        assert_eq!(attribute(1, &[7; 6]), [10, 0, 1, 0, 7, 7, 7, 7, 7, 7, 0, 0]);
    }

    #[test]
    fn answers_are_counted_and_errors_are_told() {
        let answer = |code: i32| {
            let mut bytes = Vec::new();
            message(&mut bytes, ERROR, 0, (0, 0), &[0; 16]);
            bytes[HEADER..HEADER + 4].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        assert_eq!(acknowledgements(&[answer(0), answer(0)].concat()).unwrap(), 2);
        assert_eq!(acknowledgements(&[answer(0), answer(-2)].concat()).unwrap_err().raw_os_error(), Some(2));
        for garbage in [&[][..], &[0; 15], &[0xff; 40]] {
            assert_eq!(acknowledgements(garbage).unwrap(), 0);
        }
    }
}
