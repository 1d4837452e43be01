//! The header of a packet: who says what to whom, and how much more either side has room for.
//!
//! Source: virtio 1.2 §5.10.6, "Device Operation"; Linux `include/uapi/linux/virtio_vsock.h`.

/// Bytes of a header, in front of a packet's data.
pub(super) const HEADER_BYTES: usize = 44;
/// The host's number.
pub(super) const HOST: u64 = 2;
/// The guest's number. Each VM has its own device, so all have the same.
pub(super) const GUEST: u64 = 3;
/// The only kind of connection.
const STREAM: u16 = 1;
/// Who says so receives no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Who says so sends no more.
pub(super) const NO_SEND: u32 = 2;
/// "Any port", which is nobody's.
const ANY_PORT: u32 = u32::MAX;

/// What a packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// A connection is asked for.
    Request,
    /// It is there.
    Response,
    /// It is not there, or no more.
    Reset,
    /// A side will send, or receive, no more.
    Shutdown,
    /// Data.
    Data,
    /// How much room there is, nothing else.
    Credit,
    /// How much room is there?
    CreditRequest,
    /// Something that there is not.
    Unknown,
}

impl Operation {
    fn of(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::Credit,
            7 => Self::CreditRequest,
            _ => Self::Unknown,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Unknown => 0,
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::Credit => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// Which connection: a pair of ports has one at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) guest: u32,
    pub(super) host: u32,
}

impl Key {
    /// Both are ports that somebody can have.
    pub(super) fn is_possible(self) -> bool {
        self.guest != ANY_PORT && self.host != ANY_PORT
    }

    /// As one number, of which no possible one is all ones.
    pub(super) fn number(self) -> u64 {
        u64::from(self.guest) << 32 | u64::from(self.host)
    }

    /// The key that has this number.
    pub(super) fn of(number: u64) -> Self {
        let half = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(ANY_PORT);
        Self { guest: half(number >> 32), host: half(number) }
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    /// Bytes of data behind it.
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: Operation,
    /// Of a shutdown: [`NO_RECEIVE`], [`NO_SEND`].
    pub(super) flags: u32,
    /// Bytes that the sender of this can keep, for this connection.
    pub(super) room: u32,
    /// Bytes that it has passed on, counted since the connection began, modulo 2^32.
    pub(super) passed: u32,
}

impl Header {
    /// What the host says on a connection.
    pub(super) fn to_guest(key: Key, operation: Operation) -> Self {
        Self {
            source_cid: HOST,
            destination_cid: GUEST,
            source_port: key.host,
            destination_port: key.guest,
            length: 0,
            kind: STREAM,
            operation,
            flags: 0,
            room: 0,
            passed: 0,
        }
    }

    /// "There is no such connection", to whoever said this.
    pub(super) fn refusal(self) -> Self {
        let key = Key { guest: self.source_port, host: self.destination_port };
        Self { source_cid: self.destination_cid, ..Self::to_guest(key, Operation::Reset) }
    }

    /// The connection that the guest means, if it means the host and a kind that there is.
    pub(super) fn key(self) -> Option<Key> {
        let key = Key { guest: self.source_port, host: self.destination_port };
        (self.destination_cid == HOST && self.kind == STREAM).then_some(key)
    }

    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let long = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let half = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        Self {
            source_cid: long(0),
            destination_cid: long(8),
            source_port: word(16),
            destination_port: word(20),
            length: word(24),
            kind: half(28),
            operation: Operation::of(half(30)),
            flags: word(32),
            room: word(36),
            passed: word(40),
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.number().to_le_bytes());
        let words = [
            (16, self.source_port),
            (20, self.destination_port),
            (24, self.length),
            (32, self.flags),
            (36, self.room),
            (40, self.passed),
        ];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}
