//! A connection that stops being HTTP and carries a process' input and output.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Buf;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::input::Typing;
use super::mux::Framing;
use super::{Attachment, Streams};
use crate::connections::{Busy, Place};
use crate::output::{Chunk, Source};
use crate::{peer, sys};

/// A connection taken out of HTTP.
pub struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    /// What the client had sent behind its request.
    early: Bytes,
}

/// How often it is looked whether a client has read the head, and the pause between.
const HEAD_LOOKS: u32 = 100;
const HEAD_PAUSE: Duration = Duration::from_millis(1);

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

/// A request that is to be taken out of HTTP.
pub struct Hijack {
    upgrade: OnUpgrade,
    /// The connection keeps its place among the clients' for as long as the session lasts.
    busy: Option<Busy>,
}

impl Hijack {
    /// Looks whether the client asked for it; one that did not gets the output as the response's body ([`super::plain`]).
    #[must_use]
    pub fn of(request: &mut Request) -> Option<Self> {
        let asked = request.headers().contains_key(header::UPGRADE);
        let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked)?;
        let busy = request.extensions().get::<Arc<Place>>().map(Place::busy);
        Some(Self { upgrade, busy })
    }

    /// Answers, and runs `session` on the connection.
    pub fn answer<F>(
        self,
        content_type: &'static str,
        session: impl FnOnce(Connection) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let Self { upgrade, busy } = self;
        tokio::spawn(async move {
            let _until_it_ends = busy;
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
        response
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
        self.head_is_read().await;
        let Self { reader, mut writer, early } = self;
        let streams = Arc::clone(attachment.streams());
        let hang_up = peer::hang_up(reader.as_ref());
        let read = async {
            if let Some(input) = input
                && read_input(reader, early, &streams, input).await == InputEnd::Detached
            {
                return SessionEnd::Detached;
            }
            // Its input has ended; its output goes on, unless nobody is there to take it.
            hang_up.await;
            SessionEnd::Gone
        };
        tokio::pin!(read);
        let mut write = Box::pin(write_output(&mut writer, &mut attachment.output, framing));
        let complete = |written: io::Result<()>| if written.is_ok() { SessionEnd::Complete } else { SessionEnd::Gone };
        let end = tokio::select! {
            written = write.as_mut() => complete(written),
            ended = read.as_mut() => ended,
        };
        drop(write);
        if let Err(error) = writer.shutdown().await {
            tracing::debug!(%error, "a client left first");
        }
        end
    }

    /// Waits, a short time, until the client has read the head of the answer. Some read it through a buffer, and what follows below
    /// that: docker-py loses what comes at once.
    async fn head_is_read(&self) {
        for _ in 0..HEAD_LOOKS {
            // Of no use to ask again after an error.
            if sys::is_read(self.writer.as_ref().as_fd()).unwrap_or(true) {
                return;
            }
            tokio::time::sleep(HEAD_PAUSE).await;
        }
    }

    /// Writes what comes before the stream.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.head_is_read().await;
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
    let mut typing = Typing::begin(streams, input.detach_keys).await;
    let mut buffer = early.to_vec();
    buffer.reserve(INPUT_BYTES);
    let end = loop {
        if !buffer.is_empty() {
            if typing.take(&buffer).await {
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
    drop(typing);
    if input.ends_stdin {
        streams.close_stdin();
    }
    end
}
