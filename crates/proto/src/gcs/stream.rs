//! The first bytes of a substream.

/// What a substream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// ttrpc.
    Control,
    /// Host to guest: a process's standard input (or what is typed into its terminal).
    Stdin,
    /// Guest to host: standard output (or the terminal's output).
    Stdout,
    /// Guest to host: standard error. Never used with a terminal.
    Stderr,
    /// Both ways: one operation on the container's files, see [`crate::files`]. Its number is the host's, and no process's.
    Files,
    /// Both ways: a folder of the host, as FUSE requests of the guest and answers of the host, each with its length in front. Its
    /// number is the mount's.
    Share,
    /// Both ways: a TCP connection to what listens at the guest's own loopback; its number is a [`LoopbackPort`]'s. First the guest
    /// says [`CONNECTED`]; where nobody listens it closes the substream instead.
    Port,
}

/// The guest's first byte in a substream of [`StreamKind::Port`].
pub const CONNECTED: u8 = 1;

/// A port of the guest's loopback. As a substream's number: the port, and 65536 more where it is `::1` and not 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackPort {
    /// TCP.
    pub port: u16,
    /// At `::1`.
    pub is_v6: bool,
}

impl LoopbackPort {
    /// As a substream's number.
    #[must_use]
    pub fn number(self) -> u32 {
        u32::from(self.port) | u32::from(self.is_v6) << 16
    }

    /// Reads a substream's number; none for what is no port.
    #[must_use]
    pub fn of(number: u32) -> Option<Self> {
        let port = u16::try_from(number & 0xffff).ok()?;
        (number < 2 << 16).then_some(Self { port, is_v6: number >= 1 << 16 })
    }
}

/// Says what a substream carries and for which process. Shape: 5 bytes, kind and the process number big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamHeader {
    /// What it carries.
    pub kind: StreamKind,
    /// The host's number for the process; 0 for [`StreamKind::Control`] and for a container's first process.
    pub process: u32,
}

/// A first byte that names no kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind of substream: {0}")]
pub struct InvalidHeader(pub u8);

impl StreamHeader {
    /// Length on the wire.
    pub const LEN: usize = 5;

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let kind = match self.kind {
            StreamKind::Control => 0,
            StreamKind::Stdin => 1,
            StreamKind::Stdout => 2,
            StreamKind::Stderr => 3,
            StreamKind::Files => 4,
            StreamKind::Share => 5,
            StreamKind::Port => 6,
        };
        let [a, b, c, d] = self.process.to_be_bytes();
        [kind, a, b, c, d]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`InvalidHeader`] when the first byte names no kind.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, InvalidHeader> {
        let [kind, a, b, c, d] = bytes;
        let kind = match kind {
            0 => StreamKind::Control,
            1 => StreamKind::Stdin,
            2 => StreamKind::Stdout,
            3 => StreamKind::Stderr,
            4 => StreamKind::Files,
            5 => StreamKind::Share,
            6 => StreamKind::Port,
            other => return Err(InvalidHeader(other)),
        };
        Ok(Self { kind, process: u32::from_be_bytes([a, b, c, d]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let kinds = [
            StreamKind::Control,
            StreamKind::Stdin,
            StreamKind::Stdout,
            StreamKind::Stderr,
            StreamKind::Files,
            StreamKind::Share,
            StreamKind::Port,
        ];
        for kind in kinds {
            for process in [0, 1, u32::MAX] {
                let header = StreamHeader { kind, process };
                assert_eq!(StreamHeader::decode(header.encode()), Ok(header));
            }
        }
        assert_eq!(StreamHeader::decode([7, 0, 0, 0, 0]), Err(InvalidHeader(7)));
    }

    #[test]
    fn a_port_is_a_number_with_its_family() {
        for port in [0, 80, u16::MAX] {
            for is_v6 in [false, true] {
                let wanted = LoopbackPort { port, is_v6 };
                assert_eq!(LoopbackPort::of(wanted.number()), Some(wanted));
            }
        }
        assert_eq!(LoopbackPort { port: 80, is_v6: true }.number(), 65616);
        assert_eq!((LoopbackPort::of(2 << 16), LoopbackPort::of(u32::MAX)), (None, None));
    }
}
