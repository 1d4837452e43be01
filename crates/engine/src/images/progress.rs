//! Answers that tell how far something is: one JSON object per line, the last of them an error if it failed.

use std::io;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use proto::Digest;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{ApiError, ApiResult};

/// Lines that may wait for a slow client.
const LINES: usize = 64;
/// The same for work that cannot wait for a client: all steps of an image of 500 layers, and as much for how far they are.
const MANY_LINES: usize = 8192;

/// Where work in a thread writes its lines. A client that went away does not end the work.
#[derive(Clone)]
pub(super) struct Lines(mpsc::Sender<Value>);

impl Lines {
    /// Sends a line that must arrive; waits for a slow client. When: in a thread that may wait.
    pub(super) fn send(&self, line: Value) {
        // The client is gone: nobody is there to be told.
        let _ = self.0.blocking_send(line);
    }

    /// Sends a line that may be left out when the client is slow.
    pub(super) fn offer(&self, line: Value) {
        // Full or closed: the next one says more.
        let _ = self.0.try_send(line);
    }

    /// Adds a line without waiting. When: see [`answer_until_gone`].
    pub(super) fn put(&self, line: Value) {
        if let Err(mpsc::error::TrySendError::Full(line)) = self.0.try_send(line) {
            tracing::warn!(%line, "a client that reads nothing misses a line");
        }
    }

    /// As [`Lines::put`], for a line that may be left out.
    pub(super) fn put_if_room(&self, line: Value) {
        if self.0.capacity() > MANY_LINES / 2 {
            self.put(line);
        }
    }
}

/// A line about one layer, and how far it is, in Docker's form.
pub(super) fn step(status: &str, id: &Digest, of: Option<(u64, u64)>) -> Value {
    let id = &id.hex()[..12];
    match of {
        None => json!({"status": status, "progressDetail": {}, "id": id}),
        Some((current, total)) => json!({
            "status": status, "progressDetail": {"current": current, "total": total}, "progress": bar(current, total), "id": id,
        }),
    }
}

/// The bar that older clients print as it is. Source: moby, pkg/jsonmessage, `JSONProgress.String`.
pub(crate) fn bar(current: u64, total: u64) -> String {
    let filled = usize::try_from((current * 100).checked_div(total).unwrap_or(0).min(100) / 2).unwrap_or(0);
    let (done, left) = ("=".repeat(filled), " ".repeat(50 - filled));
    format!("[{done}>{left}] {:>8}/{}", size(current), size(total))
}

/// Four digits and a unit, as docker/go-units' `HumanSize`.
fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "four digits are shown")]
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit < 4 {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    let decimals = if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", ["B", "kB", "MB", "GB", "TB"][unit])
}

/// Runs work in a thread and answers with its lines. What fails before the first line is answered with an error status,
/// what fails later with a last line, since the status has been sent.
///
/// # Errors
/// What the work failed with, if it failed before its first line.
pub(super) async fn answer(work: impl FnOnce(&Lines) -> ApiResult<()> + Send + 'static) -> ApiResult<Response> {
    let (sender, mut lines) = mpsc::channel(LINES);
    let work = tokio::task::spawn_blocking(move || work(&Lines(sender)));
    told(work, &mut lines).await.map(|first| match first {
        Told::Nothing => respond(Body::empty()),
        Told::First(line, work) => follow(line, lines, work),
    })
}

/// As [`answer`], but what fails is always told in a last line, with status 200: some clients look for it there only.
pub(super) async fn answer_in_lines(work: impl FnOnce(&Lines) -> ApiResult<()> + Send + 'static) -> Response {
    answer(work).await.unwrap_or_else(|failed| respond(Body::from(failure(&failed))))
}

/// As [`answer`], for work that is a future and ends with the connection: it is dropped when its client goes away.
///
/// # Errors
/// What the work failed with, if it failed before its first line.
pub(super) async fn answer_until_gone<F>(work: impl FnOnce(Lines) -> F) -> ApiResult<Response>
where
    F: Future<Output = ApiResult<()>> + Send + 'static,
{
    let (sender, mut lines) = mpsc::channel(MANY_LINES);
    let work = AbortOnDropHandle::new(tokio::spawn(work(Lines(sender))));
    told(work, &mut lines).await.map(|first| match first {
        Told::Nothing => respond(Body::empty()),
        Told::First(line, work) => follow(line, lines, work),
    })
}

/// Work in a thread or a task.
trait Work: Future<Output = Result<ApiResult<()>, JoinError>> + Unpin + Send + 'static {}

impl<W: Future<Output = Result<ApiResult<()>, JoinError>> + Unpin + Send + 'static> Work for W {}

enum Told<W> {
    Nothing,
    First(Value, W),
}

/// Waits for the first line.
async fn told<W: Work>(work: W, lines: &mut mpsc::Receiver<Value>) -> ApiResult<Told<W>> {
    match lines.recv().await {
        Some(first) => Ok(Told::First(first, work)),
        // The sender is gone: the work has ended without a line.
        None => work.await?.map(|()| Told::Nothing),
    }
}

fn follow(first: Value, lines: mpsc::Receiver<Value>, work: impl Work) -> Response {
    let stream = futures_util::stream::unfold(State::Lines(first, lines, work), next);
    respond(Body::from_stream(stream))
}

enum State<W> {
    Lines(Value, mpsc::Receiver<Value>, W),
    Rest(mpsc::Receiver<Value>, W),
    End,
}

async fn next<W: Work>(state: State<W>) -> Option<(io::Result<Bytes>, State<W>)> {
    match state {
        State::Lines(first, lines, work) => Some((Ok(line(&first)), State::Rest(lines, work))),
        State::Rest(mut lines, work) => match lines.recv().await {
            Some(value) => Some((Ok(line(&value)), State::Rest(lines, work))),
            None => {
                let failed = work.await.map_err(ApiError::from).and_then(|outcome| outcome).err()?;
                Some((Ok(failure(&failed)), State::End))
            }
        },
        State::End => None,
    }
}

/// The last line of work that failed.
fn failure(failed: &ApiError) -> Bytes {
    tracing::error!("{}", failed.message);
    line(&json!({"errorDetail": {"message": failed.message}, "error": failed.message}))
}

fn line(value: &Value) -> Bytes {
    Bytes::from(value.to_string() + "\r\n")
}

fn respond(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn lines_are_sent_in_order_and_the_error_last() {
        let response = answer(|lines| {
            lines.send(json!({"stream": "a"}));
            lines.send(json!({"stream": "b"}));
            Err(ApiError::invalid("broken"))
        });
        let text = text(response.await.unwrap()).await;
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[1]["stream"]), (3, &json!("b")));
        assert_eq!(lines[2]["errorDetail"]["message"], "broken");
    }

    #[tokio::test]
    async fn what_fails_at_once_has_a_status() {
        let error = answer(|_| Err(ApiError::invalid("corrupt"))).await.unwrap_err();
        assert_eq!((error.http_status().as_u16(), error.message.as_str()), (400, "corrupt"));
        assert_eq!(text(answer(|_| Ok(())).await.unwrap()).await, "");
    }

    #[tokio::test]
    async fn what_fails_at_once_can_be_told_in_a_line() {
        let response = answer_in_lines(|_| Err(ApiError::invalid("corrupt"))).await;
        assert_eq!(response.status().as_u16(), 200);
        assert!(text(response).await.contains(r#""error":"corrupt""#));
    }

    #[tokio::test]
    async fn a_line_just_before_the_end_is_not_lost() {
        for _ in 0..50 {
            let response = answer(|lines| {
                lines.send(json!(1));
                Ok(())
            });
            assert_eq!(text(response.await.unwrap()).await, "1\r\n");
        }
    }
}
