//! Answers that tell how far something is: one JSON object per line, the last of them an error if it failed.

use std::io;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::error::{ApiError, ApiResult};

/// Lines that may wait for a slow client.
const LINES: usize = 64;

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
}

/// Runs work in a thread and answers with its lines. What fails before the first line is answered with an error status,
/// what fails later with a last line, since the status has been sent.
///
/// # Errors
/// What the work failed with, if it failed before its first line.
pub(super) async fn answer(work: impl FnOnce(&Lines) -> ApiResult<()> + Send + 'static) -> ApiResult<Response> {
    let (sender, mut lines) = mpsc::channel(LINES);
    let work = tokio::task::spawn_blocking(move || work(&Lines(sender)));
    let Some(first) = lines.recv().await else {
        // The sender is gone: the work has ended without a line.
        work.await??;
        return Ok(respond(Body::empty()));
    };
    let stream = futures_util::stream::unfold(State::Lines(first, lines, work), next);
    Ok(respond(Body::from_stream(stream)))
}

enum State {
    Lines(Value, mpsc::Receiver<Value>, tokio::task::JoinHandle<ApiResult<()>>),
    Rest(mpsc::Receiver<Value>, tokio::task::JoinHandle<ApiResult<()>>),
    End,
}

async fn next(state: State) -> Option<(io::Result<Bytes>, State)> {
    match state {
        State::Lines(first, lines, work) => Some((Ok(line(&first)), State::Rest(lines, work))),
        State::Rest(mut lines, work) => match lines.recv().await {
            Some(value) => Some((Ok(line(&value)), State::Rest(lines, work))),
            None => {
                let failed = work.await.map_err(ApiError::from).and_then(|outcome| outcome).err()?;
                tracing::error!("{}", failed.message);
                let value = json!({"errorDetail": {"message": failed.message}, "error": failed.message});
                Some((Ok(line(&value)), State::End))
            }
        },
        State::End => None,
    }
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
