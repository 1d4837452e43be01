//! Answers of one JSON object per line.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::ClientError;

/// Longest line that is read, bytes.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Reads one object after the other.
pub struct JsonLines {
    body: Incoming,
    read: BytesMut,
    ended: bool,
}

impl JsonLines {
    /// Reads from a body.
    #[must_use]
    pub fn new(body: Incoming) -> Self {
        Self { body, read: BytesMut::new(), ended: false }
    }

    /// The next object; nothing at the end. May be dropped while it waits without losing anything.
    ///
    /// # Errors
    /// [`ClientError`] if the connection breaks or a line is no JSON.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(line) = take_line(&mut self.read, self.ended) {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.ended {
                return Ok(None);
            }
            if self.read.len() > MAX_LINE_BYTES {
                return Err(ClientError::Broken("a line of the engine's answer is too long".into()));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                None => self.ended = true,
            }
        }
    }
}

/// Takes a line that is not empty out of the buffer; at the end also one without a line feed.
fn take_line(read: &mut BytesMut, ended: bool) -> Option<BytesMut> {
    loop {
        let line = match read.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line = read.split_to(end);
                read.advance(1);
                line
            }
            None if ended && !read.is_empty() => read.split(),
            None => return None,
        };
        if !line.trim_ascii().is_empty() {
            return Some(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_when_they_are_whole() {
        let mut read = BytesMut::from(&b"{\"a\":1}\r\n\r\n{\"b\""[..]);
        assert_eq!(take_line(&mut read, false).unwrap().trim_ascii(), b"{\"a\":1}");
        assert_eq!(take_line(&mut read, false), None);
        read.extend_from_slice(b":2}");
        assert_eq!(take_line(&mut read, true).unwrap().as_ref(), b"{\"b\":2}");
        assert_eq!(take_line(&mut read, true), None);
    }
}
