//! What the client of a build sees: a JSON object a line.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, ApiResult};

/// Lines that may wait for a slow client.
const LINES: usize = 16;
/// Bytes of one line's text.
const MAX_TEXT: usize = 32 << 10;
/// Bytes that a quiet build keeps for the case that it fails; older ones are dropped.
const MAX_KEPT: usize = 1 << 20;

/// Where a build writes.
#[derive(Clone)]
pub struct Output {
    lines: mpsc::Sender<Bytes>,
    /// What a quiet build would have said.
    kept: Option<Arc<Mutex<Kept>>>,
}

#[derive(Default)]
struct Kept {
    lines: std::collections::VecDeque<Bytes>,
    bytes: usize,
}

impl Output {
    /// Says something.
    pub async fn say(&self, text: impl AsRef<str>) {
        let mut rest = text.as_ref();
        while !rest.is_empty() {
            let at = rest.floor_char_boundary(MAX_TEXT);
            self.line(&json!({ "stream": &rest[..at] })).await;
            rest = &rest[at..];
        }
    }

    /// Says something in red, as what a process writes to its standard error.
    pub async fn complain(&self, text: &str) {
        self.say(format!("\u{1b}[91m{text}\u{1b}[0m")).await;
    }

    /// A line of another kind.
    pub async fn line(&self, line: &Value) {
        let line = Bytes::from(line.to_string() + "\r\n");
        let Some(kept) = &self.kept else {
            // The client is gone: nobody is there to be told, and the build is about to notice.
            let _ = self.lines.send(line).await;
            return;
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.bytes > MAX_KEPT {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
    }

    /// A line that may be left out when the client is slow.
    pub fn offer(&self, line: &Value) {
        if self.kept.is_none() {
            let _ = self.lines.try_send(Bytes::from(line.to_string() + "\r\n"));
        }
    }

    /// The one line that a quiet build says.
    pub async fn result(&self, text: &str) {
        let line = json!({ "stream": text }).to_string() + "\r\n";
        let _ = self.lines.send(Bytes::from(line)).await;
    }

    /// Says what a quiet build did not, since it has failed.
    async fn give_up(&self) {
        let Some(kept) = &self.kept else { return };
        let lines = std::mem::take(&mut kept.lock().unwrap_or_else(PoisonError::into_inner).lines);
        for line in lines {
            let _ = self.lines.send(line).await;
        }
    }
}

/// Why a build has failed.
#[derive(Debug)]
pub struct Failure {
    /// The line for the user.
    pub error: ApiError,
    /// Exit code of a RUN.
    pub code: Option<u32>,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error, code: None }
    }
}

impl Failure {
    fn line(&self) -> Value {
        let message = &self.error.message;
        let detail = match self.code {
            Some(code) => json!({ "code": code, "message": message }),
            None => json!({ "message": message }),
        };
        json!({ "errorDetail": detail, "error": message })
    }
}

/// Does the work and answers with what it says. What fails before the first line is answered with an error status, what fails
/// later with a last line. When the client goes away, the work is cancelled, and not dropped: it has to clean up.
///
/// # Errors
/// What the work failed with, if it failed before its first line.
pub async fn answer<F>(quiet: bool, cancelled: CancellationToken, work: impl FnOnce(Output) -> F) -> ApiResult<Response>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (lines, mut said) = mpsc::channel(LINES);
    let output = Output { lines, kept: quiet.then(Arc::default) };
    let work = work(output.clone());
    let gone = cancelled.drop_guard();
    let task = tokio::spawn(async move {
        let outcome = work.await;
        let Err(failure) = outcome else { return Ok(()) };
        output.give_up().await;
        Err(failure)
    });
    match said.recv().await {
        None => {
            let outcome = task.await?;
            gone.disarm();
            outcome.map(|()| respond(Body::empty())).map_err(|failure| failure.error)
        }
        Some(first) => {
            let lines = futures_util::stream::unfold((Some(first), said, Some(task), gone), |state| async move {
                let (first, mut said, mut task, gone) = state;
                if let Some(first) = first {
                    return Some((Ok::<_, io::Error>(first), (None, said, task, gone)));
                }
                if let Some(line) = said.recv().await {
                    return Some((Ok(line), (None, said, task, gone)));
                }
                let outcome = task.take()?.await;
                let failure = match outcome {
                    Ok(Ok(())) => return None,
                    Ok(Err(failure)) => failure,
                    Err(error) => Failure::from(ApiError::from(error)),
                };
                let line = Bytes::from(failure.line().to_string() + "\r\n");
                Some((Ok(line), (None, said, None, gone)))
            });
            Ok(respond(Body::from_stream(lines)))
        }
    }
}

fn respond(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn said<F>(quiet: bool, work: impl FnOnce(Output) -> F) -> ApiResult<String>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let response = answer(quiet, CancellationToken::new(), work).await?;
        Ok(String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    fn failure() -> Failure {
        Failure { error: ApiError::internal("it failed"), code: Some(3) }
    }

    #[tokio::test]
    async fn a_failure_is_a_status_or_the_last_line() {
        let work = |output: Output| async move {
            output.say("Step 1").await;
            Err(failure())
        };
        let expected = "{\"stream\":\"Step 1\"}\r\n{\"error\":\"it failed\",\"errorDetail\":{\"code\":3,\"message\":\"it failed\"}}\r\n";
        assert_eq!(said(false, work).await.unwrap(), expected);
        assert_eq!(said(true, work).await.unwrap(), expected, "a quiet build that fails says what it did");
        assert_eq!(said(false, |_| async { Err(failure()) }).await.unwrap_err().message, "it failed");
    }

    #[tokio::test]
    async fn a_quiet_build_says_its_result() {
        let work = |output: Output| async move {
            output.say("Step 1").await;
            output.result("sha256:x\n").await;
            Ok(())
        };
        assert_eq!(said(true, work).await.unwrap(), "{\"stream\":\"sha256:x\\n\"}\r\n");
    }

    #[tokio::test]
    async fn the_work_is_told_when_nobody_listens_any_more() {
        let (cancelled, seen) = (CancellationToken::new(), CancellationToken::new());
        let (token, noticed) = (cancelled.clone(), seen.clone());
        let work = |output: Output| async move {
            output.say("Step 1").await;
            token.cancelled().await;
            noticed.cancel();
            Ok(())
        };
        drop(answer(false, cancelled, work).await.unwrap());
        seen.cancelled().await;
    }
}
