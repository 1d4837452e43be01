//! `--restart`: starting a container again after it ended by itself.

use std::sync::Arc;

use proto::ErrorKind;
use serde_json::Value;

use super::launch;
use crate::container::Container;
use crate::container::record::{Ended, Phase, Record};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    No,
    Always,
    UnlessStopped,
    /// `most`: how often in a row; none is without end.
    OnFailure {
        most: Option<u64>,
    },
}

impl Policy {
    /// A container's; what [`validate`] has let through.
    fn of(record: &Record) -> Self {
        let policy = &record.host["RestartPolicy"];
        match policy["Name"].as_str() {
            Some("always") => Self::Always,
            Some("unless-stopped") => Self::UnlessStopped,
            Some("on-failure") => {
                Self::OnFailure { most: policy["MaximumRetryCount"].as_u64().filter(|most| *most > 0) }
            }
            _ => Self::No,
        }
    }
}

/// Whether the policy says to start it again after this end.
#[must_use]
pub fn wants_restart(record: &Record, ended: &Ended) -> bool {
    if record.stopped_by_client {
        return false;
    }
    match Policy::of(record) {
        Policy::No => false,
        Policy::Always | Policy::UnlessStopped => true,
        Policy::OnFailure { most } => ended.code != 0 && most.is_none_or(|most| u64::from(record.restarts) < most),
    }
}

/// Whether any policy may start it again.
#[must_use]
pub fn has_policy(record: &Record) -> bool {
    Policy::of(record) != Policy::No
}

/// Starts it again after a pause, unless a client stops, starts or removes it before. `ran_ns`: how long it ran, nanoseconds.
pub fn restart_later(engine: &Arc<Engine>, container: &Arc<Container>, ran_ns: i64) {
    let (pause, turn) = container.pauses().next(ran_ns);
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    tokio::spawn(async move {
        let due = async {
            tokio::time::sleep(pause).await;
            // What clears away after the last run would take the network of this one for a leftover.
            engine.taken_up.cancelled().await;
        };
        tokio::select! {
            () = due => {}
            () = engine.host_goes_down.cancelled() => return,
            () = engine.stopping.cancelled() => return,
        }
        start_again(&engine, &container, turn).await;
    });
}

async fn start_again(engine: &Arc<Engine>, container: &Arc<Container>, turn: u64) {
    // One that was removed meanwhile stays removed.
    let Ok(_lifecycle) = container.hold().await else { return };
    if !matches!(container.record().phase, Phase::Restarting(_)) || !container.pauses().is_turn(turn) {
        return;
    }
    container.record().restarts += 1;
    if let Err(error) = launch::launch(engine, container).await {
        tracing::warn!(id = %container.id, "cannot start a container again: {error}");
        if may_pass(error.kind) {
            try_later(engine, container).await;
        }
    }
}

/// Whether the trouble is the host's of this moment, as when everything starts at once after a boot.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::ResourceExhausted)
}

/// After a start that failed: the policy counts it like a run that failed at once.
async fn try_later(engine: &Arc<Engine>, container: &Arc<Container>) {
    let Phase::Exited(ended) = container.record().phase.clone() else { return };
    if !wants_restart(&container.record(), &ended) || engine.host_goes_down.is_cancelled() {
        return;
    }
    if let Err(error) = container.enter(Phase::Restarting(ended)).await {
        tracing::error!(id = %container.id, "{error}");
        return;
    }
    container.tell(|progress| progress.running = true);
    restart_later(engine, container, 0);
}

/// Refuses a policy that is none.
///
/// # Errors
/// 400 in dockerd's words.
pub fn validate(policy: &Value) -> ApiResult<()> {
    let retries = policy["MaximumRetryCount"].as_i64().unwrap_or(0);
    let text = match policy["Name"].as_str().unwrap_or_default() {
        "on-failure" if retries >= 0 => return Ok(()),
        "" | "no" | "always" | "unless-stopped" if retries == 0 => return Ok(()),
        "on-failure" => "maximum retry count cannot be negative".to_owned(),
        "" | "no" | "always" | "unless-stopped" if retries < 0 => {
            "maximum retry count can only be used with 'on-failure' and cannot be negative".to_owned()
        }
        "" | "no" | "always" | "unless-stopped" => "maximum retry count can only be used with 'on-failure'".to_owned(),
        other => format!(
            "unknown policy '{}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            other.chars().take(100).collect::<String>()
        ),
    };
    Err(ApiError::invalid(format!("invalid restart policy: {text}")))
}

/// What the policy says when the engine comes up and the container does not run. Source: moby `daemon.restore`, but for
/// `on-failure`, which starts nothing again then, as Docker's documentation has it.
pub fn apply_at_start(engine: &Arc<Engine>, container: &Arc<Container>) {
    let again = {
        let record = container.record();
        match (&record.phase, Policy::of(&record)) {
            (Phase::Created { .. } | Phase::Running { .. }, _) => None,
            (Phase::Exited(ended) | Phase::Restarting(ended), Policy::Always) => Some(ended.clone()),
            (Phase::Exited(ended) | Phase::Restarting(ended), Policy::UnlessStopped) => {
                (!record.stopped_by_client).then(|| ended.clone())
            }
            (Phase::Restarting(ended), Policy::OnFailure { .. } | Policy::No) => Some(ended.clone()),
            (Phase::Exited(_), Policy::OnFailure { .. } | Policy::No) => None,
        }
    };
    if let Some(ended) = again {
        let ran_ns = ended.ran_ns();
        container.record().phase = Phase::Restarting(ended);
        restart_later(engine, container, ran_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::container::record::tests::record;
    use serde_json::json;

    fn wants(policy: serde_json::Value, code: u32, restarts: u32, stopped: bool) -> bool {
        let mut record = record("abc", "n");
        record.host["RestartPolicy"] = policy;
        record.restarts = restarts;
        record.stopped_by_client = stopped;
        let ended = Ended {
            started_at: Timestamp(0),
            finished_at: Timestamp(1),
            code,
            error: String::new(),
            oom_killed: false,
        };
        wants_restart(&record, &ended)
    }

    #[test]
    fn policies_decide_as_in_docker() {
        assert!(wants(json!({"Name": "always"}), 0, 9, false));
        assert!(!wants(json!({"Name": "always"}), 0, 0, true));
        assert!(!wants(json!({"Name": "no"}), 1, 0, false));
        assert!(!wants(json!({"Name": "on-failure"}), 0, 0, false));
        assert!(wants(json!({"Name": "on-failure"}), 1, 99, false));
        assert!(wants(json!({"Name": "on-failure", "MaximumRetryCount": 2}), 1, 1, false));
        assert!(!wants(json!({"Name": "on-failure", "MaximumRetryCount": 2}), 1, 2, false));
    }

    #[test]
    fn policies_that_are_none_are_refused() {
        for good in [json!(null), json!({"Name": "no"}), json!({"Name": "on-failure", "MaximumRetryCount": 3})] {
            validate(&good).unwrap();
        }
        for (bad, text) in [
            (json!({"Name": "odd"}), "unknown policy 'odd'"),
            (json!({"Name": "always", "MaximumRetryCount": 3}), "only be used with 'on-failure'"),
            (json!({"Name": "on-failure", "MaximumRetryCount": -1}), "cannot be negative"),
        ] {
            let error = validate(&bad).unwrap_err();
            assert!(error.message.starts_with("invalid restart policy: ") && error.message.contains(text), "{error}");
        }
    }
}
