//! `GET /images/get?names=...` and `GET /images/{name}/get`: images as an archive.

use std::io::{self, Write};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use image::{ResolveError, SaveError};
use tokio::sync::{mpsc, oneshot};

use super::{not_resolved, publish};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;

/// Pieces that may lie between the store and a slow client.
const PIECES: usize = 16;
/// Bytes collected before they are sent.
const PIECE_BYTES: usize = 256 << 10;

/// The names of `names`, each of which may be several, divided by commas.
pub(super) async fn save_all(engine: Arc<Engine>, query: &Query) -> ApiResult<Response> {
    let names = query.all("names").flat_map(|list| list.split(',')).filter(|name| !name.is_empty());
    save(engine, names.map(str::to_owned).collect()).await
}

/// Answers once all names are found; what fails later breaks the connection off, since the status has been sent.
pub(super) async fn save(engine: Arc<Engine>, names: Vec<String>) -> ApiResult<Response> {
    if names.is_empty() {
        return Err(ApiError::invalid("no images to save: parameter names"));
    }
    let (found, begun) = oneshot::channel();
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || write(&engine, &names, found, &sender));
    begun.await.map_err(|_| ApiError::internal("the archive's writer ended early"))??;
    let stream = futures_util::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(stream)).into_response())
}

fn write(
    engine: &Engine,
    names: &[String],
    found: oneshot::Sender<ApiResult<()>>,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) {
    let saving = match engine.images.saving(names) {
        Ok(saving) => saving,
        // As it was asked for: dockerd adds no tag here.
        Err(ResolveError::NotFound { name }) => {
            return drop(found.send(Err(ApiError::not_found(format!("No such image: {name}")))));
        }
        Err(error) => return drop(found.send(Err(not_resolved(&error)))),
    };
    if found.send(Ok(())).is_err() {
        return;
    }
    let mut output = Pieces { pieces, collected: Vec::with_capacity(PIECE_BYTES) };
    match saving.write(&mut output) {
        Ok(()) if output.flush().is_ok() => {
            saving.ids().for_each(|id| publish(engine, "save", id.as_str(), id.as_str()));
        }
        Ok(()) | Err(SaveError::Write(_)) => tracing::debug!("a client that was saving an image has gone"),
        Err(error) => {
            let text = chain(&error);
            tracing::error!("cannot save an image: {text}");
            drop(pieces.blocking_send(Err(io::Error::other(text))));
        }
    }
}

/// Collects what is written into pieces and sends them. When: in a thread that may wait.
struct Pieces<'s> {
    pieces: &'s mpsc::Sender<io::Result<Bytes>>,
    collected: Vec<u8>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.collected.extend_from_slice(bytes);
        if self.collected.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.collected, Vec::with_capacity(PIECE_BYTES));
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_is_written_is_sent_in_order() {
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let written = tokio::task::spawn_blocking(move || {
            let mut output = Pieces { pieces: &sender, collected: Vec::new() };
            (0..=255u8).try_for_each(|byte| output.write_all(&vec![byte; 5000])).and_then(|()| output.flush())
        });
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.extend_from_slice(&piece.unwrap());
        }
        written.await.unwrap().unwrap();
        assert!(all.len() == 256 * 5000 && all.is_sorted());
    }
}
