//! Bodies of requests: nothing, JSON, or a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body, Frame, SizeHint};
use serde::Serialize;

use super::ClientError;

/// The body of a request.
pub struct RequestBody {
    inner: UnsyncBoxBody<Bytes, io::Error>,
    content_type: Option<&'static str>,
}

impl RequestBody {
    /// Nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self { inner: Empty::new().map_err(|never| match never {}).boxed_unsync(), content_type: None }
    }

    /// JSON.
    ///
    /// # Errors
    /// [`ClientError::Form`] if the value has no JSON form.
    pub fn json(value: &impl Serialize) -> Result<Self, ClientError> {
        let bytes = Bytes::from(serde_json::to_vec(value)?);
        let inner = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
        Ok(Self { inner, content_type: Some("application/json") })
    }

    /// A tar stream, or whatever a file holds.
    pub fn stream(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        use futures_util::StreamExt;
        let inner = StreamBody::new(stream.map(|piece| piece.map(Frame::data))).boxed_unsync();
        Self { inner, content_type: Some("application/x-tar") }
    }

    /// The `Content-Type` that goes with it.
    #[must_use]
    pub fn content_type(&self) -> Option<&'static str> {
        self.content_type
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.get_mut().inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
