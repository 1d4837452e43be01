//! Fetching one blob, across cut connections, verified from its first byte.

use std::time::Instant;

use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use hyper::{Method, StatusCode};
use sha2::{Digest as _, Sha256};

use super::document::Descriptor;
use super::error::RegistryError;
use super::session::{Ask, Session, is_passing};
use super::transport::{Answer, TransportError, empty};
use crate::failpoint;
use proto::Digest;

/// Where the bytes of a blob go, in order, each once.
pub(super) trait Sink: Send {
    /// Takes the next bytes; `so_far` counts them.
    fn take(&mut self, bytes: &[u8], so_far: u64) -> std::io::Result<()>;
}

/// A download under way.
struct Download<'a> {
    session: &'a Session,
    blob: &'a Descriptor,
    what: String,
    hash: Sha256,
    received: u64,
    /// The registry gave a wrong part when it was asked for one: it is asked for all from then on.
    whole: bool,
}

/// Why one try ended.
enum Trouble {
    /// Another try may go on where this one stopped.
    Passing(RegistryError),
    Final(RegistryError),
}

/// Fetches a blob into `sink`; returns when all of it is there and is what the descriptor says. Whatever tries it takes,
/// the digest is that of the bytes that went into the sink.
pub(super) async fn download(session: &Session, blob: &Descriptor, sink: &mut dyn Sink) -> Result<(), RegistryError> {
    let what = format!("blob {}", blob.digest);
    let mut download = Download { session, blob, what, hash: Sha256::new(), received: 0, whole: false };
    let mut attempt = 1;
    loop {
        let before = download.received;
        match download.attempt(sink).await {
            Ok(()) => return download.verify(),
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(error)) => {
                // One that brings its bytes drop by drop gets no further tries for it.
                attempt = if download.received - before >= session.timing().least_bytes { 1 } else { attempt + 1 };
                if attempt > session.timing().attempts {
                    return Err(error);
                }
                tracing::debug!(%error, blob = %blob.digest, received = download.received, "fetching is tried again");
                tokio::time::sleep(session.pause(attempt.saturating_sub(1).max(1), None)).await;
            }
        }
    }
}

impl Download<'_> {
    async fn attempt(&mut self, sink: &mut dyn Sink) -> Result<(), Trouble> {
        let url = self.session.url(&format!("{}/blobs/{}", self.session.repository, self.blob.digest));
        let url = url.map_err(Trouble::Final)?;
        let resuming = self.received > 0 && !self.whole;
        let range = HeaderValue::from_str(&format!("bytes={}-", self.received));
        let range: Vec<_> = range.ok().filter(|_| resuming).map(|value| (RANGE, value)).into_iter().collect();
        let ask = Ask { method: Method::GET, url: &url, headers: &range, body: &empty, sent: None };
        let mut answer = match self.session.ask(&ask).await {
            Ok(answer) => answer,
            // A registry that is started anew refuses for a moment.
            Err(error @ RegistryError::Transport { source: TransportError::Connect(_), .. }) => {
                return Err(Trouble::Passing(error));
            }
            Err(error) => return Err(Trouble::Final(error)),
        };
        // What is skipped has been hashed already: if it differs now, nobody sees it.
        let mut skip = match answer.status {
            StatusCode::OK => self.received,
            StatusCode::PARTIAL_CONTENT if resuming && self.is_rest(&answer) => 0,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if resuming => {
                self.whole = true;
                return Err(Trouble::Passing(self.refused("the registry gives another part than was asked for")));
            }
            status if is_passing(status) => {
                return Err(Trouble::Passing(self.session.failure(answer, &self.what).await));
            }
            _ => return Err(Trouble::Final(self.session.failure(answer, &self.what).await)),
        };
        self.check_head(&answer).map_err(Trouble::Final)?;
        let timing = *self.session.timing();
        let (mut began, mut brought) = (Instant::now(), 0_u64);
        while let Some(piece) = answer.piece().await.map_err(|error| self.trouble(error))? {
            brought += piece.len() as u64;
            if began.elapsed() >= timing.stall {
                if brought < timing.least_bytes {
                    return Err(self.trouble(TransportError::Stalled { waited: timing.stall }));
                }
                (began, brought) = (Instant::now(), 0);
            }
            let skipped = usize::try_from(skip).map_or(piece.len(), |skip| skip.min(piece.len()));
            skip -= skipped as u64;
            self.take(&piece[skipped..], sink).map_err(Trouble::Final)?;
            failpoint::reach("pull.piece");
        }
        if self.received < self.blob.size {
            let (received, size) = (self.received, self.blob.size);
            return Err(Trouble::Passing(self.refused(&format!("it ends after {received} of {size} bytes"))));
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<(), RegistryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.received += bytes.len() as u64;
        if self.received > self.blob.size {
            return Err(self.refused(&format!("it is longer than {} bytes", self.blob.size)));
        }
        self.hash.update(bytes);
        sink.take(bytes, self.received).map_err(RegistryError::io("write a temporary file"))
    }

    /// True for exactly the rest of the blob.
    fn is_rest(&self, answer: &Answer) -> bool {
        let (from, size) = (self.received, self.blob.size);
        answer
            .header(CONTENT_RANGE)
            .is_some_and(|text| text == format!("bytes {from}-{}/{size}", size.saturating_sub(1)))
    }

    fn check_head(&self, answer: &Answer) -> Result<(), RegistryError> {
        answer.check_plain().map_err(|source| self.session.transport_error(source))?;
        let length = answer.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        match length {
            Some(length) if answer.status == StatusCode::OK && length != self.blob.size => {
                Err(self.refused(&format!("it has {length} bytes instead of {}", self.blob.size)))
            }
            _ => Ok(()),
        }
    }

    fn trouble(&self, error: TransportError) -> Trouble {
        let transient = error.is_transient();
        let error = self.session.transport_error(error);
        if transient { Trouble::Passing(error) } else { Trouble::Final(error) }
    }

    fn refused(&self, reason: &str) -> RegistryError {
        RegistryError::refused(&self.what, reason)
    }

    fn verify(self) -> Result<(), RegistryError> {
        let actual = Digest::from_sha256(&self.hash.finalize().into());
        match actual == self.blob.digest {
            true => Ok(()),
            false => Err(RegistryError::DigestMismatch { what: self.what, expected: self.blob.digest.clone(), actual }),
        }
    }
}

/// Collects a small blob.
impl Sink for Vec<u8> {
    fn take(&mut self, bytes: &[u8], _: u64) -> std::io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}
