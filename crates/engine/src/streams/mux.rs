//! How output of several sources travels in one stream.
//!
//! Source: Docker Engine API, "Attach to a container", stream format.

use axum::body::Bytes;

use crate::output::{Chunk, Source};

/// How output is written to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// As it is: the process has a terminal, and so one source.
    Raw,
    /// Each chunk behind a header that names its source and length.
    Multiplexed,
}

impl Framing {
    /// For a process with or without a terminal.
    #[must_use]
    pub fn of_terminal(terminal: bool) -> Self {
        if terminal { Self::Raw } else { Self::Multiplexed }
    }

    /// The content type that says so.
    #[must_use]
    pub fn content_type(self, version: crate::version::ApiVersion) -> &'static str {
        // Clients before 1.42 know the first name only, and ask whether there is a terminal.
        match self {
            Self::Multiplexed if version >= crate::version::ApiVersion::new(1, 42) => {
                "application/vnd.docker.multiplexed-stream"
            }
            _ => "application/vnd.docker.raw-stream",
        }
    }

    /// What goes before a chunk's bytes.
    #[must_use]
    pub fn header(self, source: Source, length: usize) -> Bytes {
        match self {
            Self::Raw => Bytes::new(),
            Self::Multiplexed => Bytes::copy_from_slice(&header(source, length)),
        }
    }

    /// A whole chunk as it is written.
    #[must_use]
    pub fn encode(self, chunk: &Chunk) -> Bytes {
        match self {
            Self::Raw => chunk.bytes.clone(),
            Self::Multiplexed => [&header(chunk.source, chunk.bytes.len())[..], &chunk.bytes].concat().into(),
        }
    }
}

/// Length of a header.
pub const HEADER_LEN: usize = 8;

/// `[source, 0, 0, 0, length big endian]`. Shape: `length` fits 32 bits, since chunks are short.
fn header(source: Source, length: usize) -> [u8; HEADER_LEN] {
    let number = match source {
        Source::Stdout => 1,
        Source::Stderr => 2,
    };
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [number, 0, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::ApiVersion;

    #[test]
    fn a_frame_names_its_source_and_length() {
        let chunk = Chunk { source: Source::Stderr, bytes: Bytes::from(vec![b'x'; 0x1_0203]) };
        let frame = Framing::Multiplexed.encode(&chunk);
        assert_eq!(&frame[..HEADER_LEN], [2, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(&frame[HEADER_LEN..], &chunk.bytes);
        assert_eq!(Framing::Raw.encode(&chunk), chunk.bytes);
    }

    #[test]
    fn old_clients_get_the_old_name() {
        let framing = Framing::of_terminal(false);
        assert!(framing.content_type(ApiVersion::new(1, 42)).contains("multiplexed"));
        assert!(framing.content_type(ApiVersion::new(1, 41)).contains("raw"));
        assert!(Framing::of_terminal(true).content_type(ApiVersion::new(1, 51)).contains("raw"));
    }
}
