//! `GET /containers/{id}/attach/ws`: attaching by a web socket, as clients in browsers do.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};

use super::attach::{Asked, Client};
use crate::connections::Place;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;
use crate::streams::hijack::{Input, SessionEnd};
use crate::streams::input::Typing;
use crate::streams::mux::Framing;
use crate::streams::{Attachment, Streams};

/// The longest message that a client may send, in bytes.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Attaches a web socket to a container's first process. Shape: output and input are binary messages, whatever source they
/// have: there are no headers in them, even without a terminal.
///
/// # Errors
/// 404; 400 for a request that asks for no web socket, and for detach keys that are none.
pub async fn attach(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    Extension(place): Extension<Arc<Place>>,
    query: Query,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> ApiResult<Response> {
    let container = engine.containers.find(&id)?;
    let upgrade = upgrade.map_err(|error| ApiError::invalid(error.body_text()))?;
    // Whoever names no stream means all of them: older versions knew no choice.
    let names_some = ["stdin", "stdout", "stderr"].iter().any(|name| query.get(name).is_some());
    let asked = Asked::read(&container, &query, !names_some)?;
    let (client, attachment, input) = Client::attach(engine, container, asked, Framing::Raw).await?;
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    let busy = place.busy();
    Ok(upgrade.on_upgrade(async move |socket| {
        let _until_it_ends = busy;
        carry(socket, client, attachment, input).await;
    }))
}

async fn carry(socket: WebSocket, client: Client, attachment: Option<Attachment>, input: Option<Input>) {
    let (mut to, from) = socket.split();
    let end = match attachment {
        _ if send(&mut to, client.past()).await.is_err() => SessionEnd::Gone,
        None => SessionEnd::Complete,
        Some(mut attachment) => {
            let streams = Arc::clone(attachment.streams());
            tokio::select! {
                end = write_output(&mut to, &mut attachment) => end,
                end = read_input(from, &streams, input) => end,
            }
        }
    };
    if end == SessionEnd::Detached {
        client.tell_detached();
    }
    if let Err(error) = to.close().await {
        tracing::debug!(%error, "a client left first");
    }
}

async fn send(to: &mut SplitSink<WebSocket, Message>, bytes: Bytes) -> Result<(), axum::Error> {
    if bytes.is_empty() { Ok(()) } else { to.send(Message::Binary(bytes)).await }
}

async fn write_output(to: &mut SplitSink<WebSocket, Message>, attachment: &mut Attachment) -> SessionEnd {
    while let Some(chunk) = attachment.output.recv().await {
        if send(to, chunk.bytes).await.is_err() {
            return SessionEnd::Gone;
        }
    }
    SessionEnd::Complete
}

/// Reads even without anything to read for: only so is it seen that the client leaves.
async fn read_input(mut from: SplitStream<WebSocket>, streams: &Streams, input: Option<Input>) -> SessionEnd {
    let ends_stdin = input.as_ref().is_some_and(|input| input.ends_stdin);
    let mut typing = match input {
        Some(input) => Some(Typing::begin(streams, input.detach_keys).await),
        None => None,
    };
    let end = loop {
        let bytes = match from.next().await {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Text(text))) => text.into(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => break SessionEnd::Gone,
        };
        if let Some(typing) = &mut typing
            && typing.take(&bytes).await
        {
            return SessionEnd::Detached;
        }
    };
    drop(typing);
    if ends_stdin {
        streams.close_stdin();
    }
    end
}
