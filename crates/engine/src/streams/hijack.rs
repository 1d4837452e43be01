//! A connection that stops being HTTP and carries a process' input and output.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Buf;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::sync::mpsc;

use super::mux::Framing;
use super::{Attachment, Streams};
use crate::error::{ApiError, ApiResult};
use crate::output::{Chunk, Source};

/// A connection taken out of HTTP.
pub struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    /// What the client had sent behind its request.
    early: Bytes,
}

/// What a client's input does with the process' input.
pub struct Input {
    /// End the process' input when this client's ends.
    pub ends_stdin: bool,
    /// The keys that detach this client; empty when none do.
    pub detach_keys: Vec<u8>,
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The process' output has ended and was sent.
    Complete,
    /// The client pressed its detach keys.
    Detached,
    /// The client does not take any more.
    Gone,
}

/// A request that may be taken out of HTTP.
pub struct Hijack {
    upgrade: Option<OnUpgrade>,
}

impl Hijack {
    /// Looks whether the client asked for it.
    #[must_use]
    pub fn of(request: &mut Request) -> Self {
        let asked = request.headers().contains_key(header::UPGRADE);
        Self { upgrade: request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked) }
    }

    /// Answers, and runs `session` on the connection; a client that did not ask for an upgrade gets the output as the
    /// response's body, through `plain`.
    ///
    /// # Errors
    /// 400 when the connection cannot be taken and there is no plain way.
    pub fn answer<F>(
        self,
        content_type: &'static str,
        session: impl FnOnce(Connection) -> F + Send + 'static,
        plain: impl FnOnce() -> ApiResult<Body>,
    ) -> ApiResult<Response>
    where
        F: Future<Output = ()> + Send,
    {
        let Some(upgrade) = self.upgrade else {
            return Ok(([(header::CONTENT_TYPE, content_type)], plain()?).into_response());
        };
        tokio::spawn(async move {
            match upgrade.await.map_err(|error| error.to_string()).and_then(Connection::take) {
                Ok(connection) => session(connection).await,
                Err(error) => tracing::warn!(error, "a client left before its connection was taken over"),
            }
        });
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
        headers.remove(header::CONTENT_LENGTH);
        response.extensions_mut().insert(ReasonPhrase::from_static(b"UPGRADED"));
        Ok(response)
    }
}

impl Connection {
    fn take(upgraded: hyper::upgrade::Upgraded) -> Result<Self, String> {
        let parts = upgraded.downcast::<TokioIo<UnixStream>>().map_err(|_| "not a unix socket".to_owned())?;
        let (reader, writer) = parts.io.into_inner().into_split();
        Ok(Self { reader, writer, early: parts.read_buf })
    }

    /// Carries a process' streams until its output has ended, the client detaches or leaves.
    pub async fn carry(self, mut attachment: Attachment, framing: Framing, input: Option<Input>) -> SessionEnd {
        let Self { reader, mut writer, early } = self;
        let streams = Arc::clone(attachment.streams());
        let read = async {
            match input {
                Some(input) => read_input(reader, early, &streams, input).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(read);
        let mut write = Box::pin(write_output(&mut writer, &mut attachment.output, framing));
        let complete = |written: io::Result<()>| if written.is_ok() { SessionEnd::Complete } else { SessionEnd::Gone };
        let end = tokio::select! {
            written = write.as_mut() => complete(written),
            ended = read.as_mut() => match ended {
                // Its input has ended; its output goes on.
                InputEnd::Ended => complete(write.as_mut().await),
                InputEnd::Detached => SessionEnd::Detached,
            },
        };
        drop(write);
        if let Err(error) = writer.shutdown().await {
            tracing::debug!(%error, "a client left first");
        }
        end
    }

    /// Writes what comes before the stream.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }

    /// Writes a last text, such as why a process could not be started.
    pub async fn write_text(mut self, framing: Framing, text: &str) {
        let chunk = Chunk { source: Source::Stdout, bytes: Bytes::copy_from_slice(text.as_bytes()) };
        if let Err(error) = self.writer.write_all(&framing.encode(&chunk)).await {
            tracing::debug!(%error, "a client left first");
        }
    }
}

async fn write_output(
    writer: &mut OwnedWriteHalf,
    output: &mut mpsc::Receiver<Chunk>,
    framing: Framing,
) -> io::Result<()> {
    while let Some(chunk) = output.recv().await {
        let mut frame = framing.header(chunk.source, chunk.bytes.len()).chain(chunk.bytes);
        writer.write_all_buf(&mut frame).await?;
    }
    Ok(())
}

/// How a client's input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputEnd {
    Ended,
    Detached,
}

/// The most that one read takes from a client.
const INPUT_BYTES: usize = 64 * 1024;

async fn read_input(mut reader: OwnedReadHalf, early: Bytes, streams: &Streams, input: Input) -> InputEnd {
    let mut pipe = streams.stdin().await;
    let mut keys = DetachKeys::new(input.detach_keys);
    let mut buffer = early.to_vec();
    buffer.reserve(INPUT_BYTES);
    let end = loop {
        if !buffer.is_empty() {
            let (typed, detached) = keys.filter(&buffer);
            if let Some(open) = &pipe
                && let Err(error) = write_pipe(open, &typed).await
            {
                tracing::debug!(%error, "a process does not read its input any more");
                pipe = None;
            }
            if detached {
                return InputEnd::Detached;
            }
            buffer.clear();
        }
        match reader.read_buf(&mut buffer).await {
            Ok(0) => break InputEnd::Ended,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a client's input broke off");
                break InputEnd::Ended;
            }
        }
    };
    drop(pipe);
    if input.ends_stdin {
        streams.close_stdin();
    }
    end
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
