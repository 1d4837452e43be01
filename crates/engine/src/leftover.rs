//! What a handler leaves of a request's body. The HTTP library hangs up on a client whose body was not read, without a word;
//! one that then sends its next request on the connection, as all SDKs do, fails. So little is read away, and much is told.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

/// What is read at most, in bytes. Source: Go's net/http, `maxPostHandlerReadBytes`.
const MAX_BYTES: usize = 256 << 10;
/// How long the client may take to send it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The body's other end, for when the handler is done.
pub struct Leftover(Arc<Mutex<Body>>);

impl Leftover {
    /// Gives the body for the handler, and what looks after it.
    pub fn of(body: Body) -> (Body, Self) {
        let body = Arc::new(Mutex::new(body));
        (Body::new(Shared(Arc::clone(&body))), Self(body))
    }

    /// Reads what is left, if it is little and nobody else is reading it. False: the connection cannot be used again.
    pub async fn drain(self) -> bool {
        // A task that outlives its handler, such as one that copies into a container, reads it to the end.
        let Ok(body) = Arc::try_unwrap(self.0) else { return true };
        let mut body = body.into_inner().unwrap_or_else(PoisonError::into_inner);
        if body.size_hint().lower() > MAX_BYTES as u64 {
            return false;
        }
        let mut bytes = 0;
        let drain = async {
            while let Some(frame) = body.frame().await {
                bytes += frame.map_or(MAX_BYTES, |frame| frame.data_ref().map_or(0, Bytes::len));
                if bytes >= MAX_BYTES {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(PATIENCE, drain).await.unwrap_or(false)
    }
}

/// The handler's end.
struct Shared(Arc<Mutex<Body>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Body) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn little_is_read_away_and_much_is_told() {
        for (length, read) in [(0, true), (100_000, true), (1 << 20, false)] {
            let (body, leftover) = Leftover::of(Body::from(vec![b'x'; length]));
            drop(body);
            assert_eq!(leftover.drain().await, read, "{length} bytes");
        }
        let (body, leftover) = Leftover::of(Body::from("whole"));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
        assert!(leftover.drain().await);
        let (_body, leftover) = Leftover::of(Body::from(vec![b'x'; 1 << 20]));
        assert!(leftover.drain().await, "somebody else reads it");
    }
}
