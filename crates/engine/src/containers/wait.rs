//! `POST /containers/{id}/wait`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::watch;

use crate::container::Progress;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

impl Condition {
    fn read(query: &Query) -> ApiResult<Self> {
        match query.get("condition").unwrap_or("not-running") {
            "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            other => Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
        }
    }

    fn is_met(self, now: &Progress, exits_before: u64) -> bool {
        match self {
            _ if now.removed => true,
            // Also when it was started again since, by its restart policy.
            Self::NotRunning => !now.running || now.exits > exits_before,
            Self::NextExit => now.exits > exits_before,
            Self::Removed => false,
        }
    }
}

/// Answers when the condition is met; the headers go out at once, since clients start the container only then.
///
/// # Errors
/// 404; 400 for an unknown condition.
pub async fn wait(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let container = engine.containers.find(&id)?;
    let condition = Condition::read(&query)?;
    let progress = container.progress();
    drop(container);
    let body = Body::from_stream(futures_util::stream::once(answer(progress, condition)));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn answer(mut progress: watch::Receiver<Progress>, condition: Condition) -> Result<Bytes, Infallible> {
    let exits_before = progress.borrow().exits;
    let met = progress.wait_for(|now| condition.is_met(now, exits_before)).await.map(|now| now.clone());
    let end = met.unwrap_or_default();
    let mut body = json!({ "StatusCode": end.code });
    if !end.error.is_empty() {
        body["Error"] = json!({ "Message": end.error });
    }
    Ok(Bytes::from(body.to_string() + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_condition_waits_for_its_own() {
        let sender = watch::Sender::new(Progress { running: true, exits: 3, ..Progress::default() });
        let asked = [Condition::NotRunning, Condition::NextExit, Condition::Removed];
        let mut answers = asked.map(|condition| Box::pin(answer(sender.subscribe(), condition)));
        for answer in &mut answers {
            assert!(futures_util::poll!(answer.as_mut()).is_pending());
        }
        sender.send_modify(|progress| *progress = Progress { exits: 4, code: 7, ..Progress::default() });
        let [not_running, next_exit, mut removed] = answers;
        assert_eq!(not_running.await.unwrap(), "{\"StatusCode\":7}\n");
        assert_eq!(next_exit.await.unwrap(), "{\"StatusCode\":7}\n");
        assert!(futures_util::poll!(removed.as_mut()).is_pending());
        sender.send_modify(|progress| progress.removed = true);
        assert_eq!(removed.await.unwrap(), "{\"StatusCode\":7}\n");
    }

    #[tokio::test]
    async fn an_exit_counts_though_a_restart_followed_it() {
        let sender = watch::Sender::new(Progress { running: true, exits: 3, ..Progress::default() });
        let mut answer = Box::pin(answer(sender.subscribe(), Condition::NotRunning));
        assert!(futures_util::poll!(answer.as_mut()).is_pending());
        sender.send_modify(|progress| (progress.exits, progress.code) = (4, 1));
        assert_eq!(answer.await.unwrap(), "{\"StatusCode\":1}\n");
    }

    #[tokio::test]
    async fn an_engine_error_is_told_beside_the_code() {
        let end = Progress { code: 137, error: "the guest's kernel panicked".into(), ..Progress::default() };
        let (_sender, receiver) = watch::channel(end);
        let text = answer(receiver, Condition::NotRunning).await.unwrap();
        assert_eq!(text, "{\"Error\":{\"Message\":\"the guest's kernel panicked\"},\"StatusCode\":137}\n");
    }

    #[test]
    fn unknown_conditions_are_refused() {
        assert!(Condition::read(&Query::parse("condition=x")).is_err());
        assert_eq!(Condition::read(&Query::parse("")).unwrap(), Condition::NotRunning);
    }
}
