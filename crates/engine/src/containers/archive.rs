//! `/containers/{id}/archive`: what `docker cp` reads and writes.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::ErrorKind;
use proto::files::{FilesRequest, FrameReceiver, PathStat};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::files::{Operation, received};
use crate::clock::Timestamp;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;
use crate::reader;

/// The header with what is at the path, base64 of JSON.
const STAT_HEADER: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
/// Bytes of one piece of a body, and pieces on their way to a client.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 8;

fn path(query: &Query) -> ApiResult<String> {
    let path = query.get("path").ok_or_else(|| ApiError::invalid("bad parameter: 'path' cannot be empty"))?;
    if path.contains('\0') {
        Err(ApiError::invalid("bad parameter: 'path' has a zero byte"))
    } else {
        Ok(path.to_owned())
    }
}

/// dockerd's words for a path that is not there. `asked` is the container as the client calls it.
fn explain(error: ApiError, path: &str, asked: &str) -> ApiError {
    match error.kind {
        ErrorKind::NotFound => ApiError::not_found(format!("Could not find the file {path} in container {asked}")),
        _ => error,
    }
}

/// `HEAD`: what is at a path.
///
/// # Errors
/// 404 for an unknown container or path, 400 for a path that leads through a file.
pub async fn stat(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let (container, path) = (engine.containers.find(&id)?, path(&query)?);
    let request = FilesRequest::Stat { path: path.clone(), mounts: Vec::new() };
    let operation = Operation::begin_with_mounts(&engine, &container, request).await?;
    let stat = tokio::task::spawn_blocking(move || {
        let mut receiver = operation.receiver()?;
        let stat: PathStat = received(receiver.message())?;
        received(std::io::copy(&mut receiver, &mut std::io::sink()))?;
        operation.finish()?;
        Ok(stat)
    });
    let stat = stat.await?.map_err(|error| explain(error, &path, &id))?;
    Ok(([(STAT_HEADER, encode(&stat)?)], StatusCode::OK).into_response())
}

/// `GET`: a path as a tar stream.
///
/// # Errors
/// As [`stat`].
pub async fn read(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let (container, path) = (engine.containers.find(&id)?, path(&query)?);
    let request = FilesRequest::Read { path: path.clone(), mounts: Vec::new() };
    let operation = Operation::begin_with_mounts(&engine, &container, request).await?;
    let (told, stat) = oneshot::channel();
    let (pieces, body) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let begun = operation.receiver().and_then(|mut receiver| {
            let stat: PathStat = received(receiver.message())?;
            Ok((stat, receiver))
        });
        match begun {
            Ok((stat, receiver)) => {
                // The client is gone when nobody takes it, and then the stream ends, too.
                let _ = told.send(Ok(stat));
                stream(operation, receiver, &pieces);
            }
            Err(error) => drop(told.send(Err(error))),
        }
    });
    let stat = stat.await.map_err(|_| ApiError::internal("the work on the container's files broke off"))?;
    let stat = stat.map_err(|error| explain(error, &path, &id))?;
    container.emit(&engine.events, "archive-path", &[]);
    let headers =
        [(STAT_HEADER, encode(&stat)?), (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"))];
    Ok((headers, body_of(body)).into_response())
}

/// `PUT`: a tar stream, unpacked into a folder.
///
/// # Errors
/// As [`stat`]; 400 for a stream that is none, and for a place in a root or a volume that is read-only.
pub async fn write(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> ApiResult<StatusCode> {
    // Before anything is refused: an answer that comes while the client still sends is lost on it.
    let body = reader::of_body(request.into_body());
    let (container, path) = (engine.containers.find(&id)?, path(&query)?);
    let root_read_only = container.record().host_flag("ReadonlyRootfs");
    let keep_kinds = query.flag("noOverwriteDirNonDir");
    let wanted = FilesRequest::Write { path: path.clone(), keep_kinds, root_read_only, mounts: Vec::new() };
    let operation = Operation::begin_with_mounts(&engine, &container, wanted).await?;
    let written = tokio::task::spawn_blocking(move || {
        // Before anything of it comes near the container, whose programs are never asked for this.
        let tar = image::decompressed(body)
            .map_err(|error| ApiError::invalid(format!("cannot read the archive: {}", crate::error::chain(&error))))?;
        operation.send(tar)?;
        operation.finish()
    });
    written.await?.map_err(|error| explain(error, &path, &id))?;
    container.emit(&engine.events, "extract-to-dir", &[]);
    Ok(StatusCode::OK)
}

/// Passes what is received on to a client, and ends the operation in order.
pub(super) fn stream<R: std::io::Read>(
    operation: Operation,
    mut receiver: FrameReceiver<R>,
    pieces: &mpsc::Sender<std::io::Result<Bytes>>,
) {
    use std::io::Read;
    let outcome = loop {
        let mut piece = vec![0; PIECE_BYTES];
        match received(receiver.read(&mut piece)) {
            Ok(0) => break operation.finish(),
            Ok(count) => {
                piece.truncate(count);
                match pass_on(&operation, pieces, piece.into()) {
                    Taken::Yes => {}
                    // The client is gone: the operation is broken off.
                    Taken::ByNobody => return,
                    // What is told below waits for the client, but holds nothing of the container.
                    Taken::TooLate => {
                        drop((operation, receiver));
                        break Err(ApiError::internal("the container has ended, and the client took nothing"));
                    }
                }
            }
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = outcome {
        tracing::error!("reading a container's files broke off: {}", error.message);
        // A body that ends in an error is no whole one for the client.
        let _ = pieces.blocking_send(Err(std::io::Error::other(error)));
    }
}

/// What became of a piece.
enum Taken {
    Yes,
    ByNobody,
    TooLate,
}

fn pass_on(operation: &Operation, pieces: &mpsc::Sender<std::io::Result<Bytes>>, piece: Bytes) -> Taken {
    tokio::runtime::Handle::current().block_on(async {
        tokio::select! {
            biased;
            sent = pieces.send(Ok(piece)) => if sent.is_ok() { Taken::Yes } else { Taken::ByNobody },
            () = operation.is_in_the_way() => Taken::TooLate,
        }
    })
}

/// The body of a stream.
pub(super) fn body_of(pieces: mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
    Body::from_stream(futures_util::stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    }))
}

fn encode(stat: &PathStat) -> ApiResult<HeaderValue> {
    let modified = i128::from(stat.modified_seconds) * 1_000_000_000 + i128::from(stat.modified_nanoseconds);
    let value = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": stat.mode,
        "mtime": Timestamp(i64::try_from(modified).unwrap_or(0)).to_string(),
        "linkTarget": stat.link_target,
    });
    HeaderValue::from_str(&STANDARD.encode(value.to_string()))
        .map_err(|error| ApiError::caused("cannot tell what is at the path", &error))
}
