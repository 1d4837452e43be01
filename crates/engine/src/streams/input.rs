//! What a client types: on its way to a process' input, with the keys taken out that detach the client.

use std::io;
use std::sync::Arc;

use tokio::net::unix::pipe;

use super::Streams;
use crate::error::{ApiError, ApiResult};

/// A client's input, on its way.
pub struct Typing {
    /// None when the process takes nothing (any more).
    pipe: Option<Arc<pipe::Sender>>,
    keys: DetachKeys,
}

impl Typing {
    /// Waits until there is a process.
    pub async fn begin(streams: &Streams, detach_keys: Vec<u8>) -> Self {
        Self { pipe: streams.stdin().await, keys: DetachKeys::new(detach_keys) }
    }

    /// Passes on what was typed. True when the detach keys were completed.
    pub async fn take(&mut self, bytes: &[u8]) -> bool {
        let (typed, detached) = self.keys.filter(bytes);
        if let Some(open) = &self.pipe
            && let Err(error) = write_pipe(open, &typed).await
        {
            tracing::debug!(%error, "a process does not read its input any more");
            self.pipe = None;
        }
        detached
    }
}

async fn write_pipe(pipe: &pipe::Sender, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        pipe.writable().await?;
        match pipe.try_write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Finds the detach keys in what is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// What of `typed` goes to the process, and whether the keys were completed. Keys that may be the beginning are
    /// held back until the next one decides.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(typed.len());
        for &key in typed {
            if key != self.keys[self.matched] {
                passed.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if key != self.keys[self.matched] {
                passed.push(key);
                continue;
            }
            self.matched += 1;
            if self.matched == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

/// Reads `ctrl-p,ctrl-q` and the like.
///
/// # Errors
/// 400 for a key that is none.
pub fn parse_detach_keys(text: &str) -> ApiResult<Vec<u8>> {
    text.split(',').map(parse_key).collect()
}

/// The keys when the client names none.
pub const DEFAULT_DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// Source: moby/term `ascii.go`.
fn parse_key(text: &str) -> ApiResult<u8> {
    let unknown = || ApiError::invalid(format!("Unknown character: '{text}'"));
    let key = match text.strip_prefix("ctrl-") {
        Some(letter) => match letter.as_bytes() {
            [letter @ b'a'..=b'z'] => letter - b'a' + 1,
            b"@" => 0,
            b"[" => 27,
            b"\\" => 28,
            b"]" => 29,
            b"^" => 30,
            b"_" => 31,
            _ => return Err(unknown()),
        },
        None if text == "DEL" => 127,
        None => match text.as_bytes() {
            [key] => *key,
            _ => return Err(unknown()),
        },
    };
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_reads_and_prefixes_are_given_back() {
        let mut keys = DetachKeys::new(parse_detach_keys(DEFAULT_DETACH_KEYS).unwrap());
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        assert_eq!(DetachKeys::new(Vec::new()).filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    #[test]
    fn keys_are_named_as_in_docker() {
        assert_eq!(parse_detach_keys("ctrl-a,x,ctrl-[").unwrap(), [1, b'x', 27]);
        for bad in ["", "ctrl-", "ctrl-A", "xy", "ctrl-a,"] {
            assert!(parse_detach_keys(bad).is_err(), "{bad:?}");
        }
    }
}
