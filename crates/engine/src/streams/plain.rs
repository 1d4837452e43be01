//! A process' output as the body of an ordinary response, for clients that did not ask for the connection.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};

use super::Attachment;
use super::mux::Framing;

/// The chunks of an attachment, framed, until its run has ended.
pub fn chunks(attachment: Attachment, framing: Framing) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(attachment, move |mut attachment| async move {
        let chunk = attachment.output.recv().await?;
        Some((Ok(framing.encode(&chunk)), attachment))
    })
}

/// 200 with a stream of such chunks, whose headers are sent at once.
pub fn answer(
    content_type: &'static str,
    chunks: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
) -> Response {
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(chunks)).into_response()
}
