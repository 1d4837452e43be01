//! `--restart`: starting a container again after it ended by itself.

use std::sync::Arc;
use std::time::Duration;

use super::launch;
use crate::container::Container;
use crate::container::record::{Ended, Phase, Record};
use crate::engine::Engine;

/// The first pause before a restart; each further one is twice as long. Source: moby `restartmanager`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A container that ran this long begins with the first pause again.
const HEALTHY_AFTER_NS: i64 = 10_000_000_000;

/// Whether the policy says to start it again after this end.
#[must_use]
pub fn wants_restart(record: &Record, ended: &Ended) -> bool {
    let policy = &record.host["RestartPolicy"];
    if record.stopped_by_client {
        return false;
    }
    match policy["Name"].as_str() {
        Some("always" | "unless-stopped") => true,
        Some("on-failure") => {
            let most = policy["MaximumRetryCount"].as_u64().unwrap_or(0);
            ended.code != 0 && (most == 0 || u64::from(record.restarts) < most)
        }
        _ => false,
    }
}

/// Starts it again after a pause, unless a client stops or removes it before.
pub fn restart_later(engine: &Arc<Engine>, container: &Arc<Container>, ended: &Ended) {
    let before = container.record().restarts;
    let healthy = ended.finished_at.0 - ended.started_at.0 >= HEALTHY_AFTER_NS;
    let pause = if healthy { FIRST_PAUSE } else { pause(before) };
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = engine.stopping.cancelled() => return,
        }
        start_again(&engine, &container).await;
    });
}

fn pause(restarts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(restarts.min(16))).min(LONGEST_PAUSE)
}

async fn start_again(engine: &Arc<Engine>, container: &Arc<Container>) {
    // One that was removed meanwhile stays removed.
    let Ok(_lifecycle) = container.hold().await else { return };
    if !matches!(container.record().phase, Phase::Restarting(_)) {
        return;
    }
    container.record().restarts += 1;
    if let Err(error) = launch::launch(engine, container).await {
        tracing::warn!(id = %container.id, "cannot start a container again: {error}");
    }
}

/// What the policy says when the engine comes up and the container does not run. Source: moby `daemon.restore`.
pub fn apply_at_start(engine: &Arc<Engine>, container: &Arc<Container>) {
    let again = {
        let record = container.record();
        match (&record.phase, record.host["RestartPolicy"]["Name"].as_str()) {
            (Phase::Created { .. } | Phase::Running { .. }, _) => None,
            (Phase::Exited(ended) | Phase::Restarting(ended), Some("always")) => Some(ended.clone()),
            (Phase::Exited(ended) | Phase::Restarting(ended), Some("unless-stopped")) => {
                (!record.stopped_by_client).then(|| ended.clone())
            }
            (Phase::Restarting(ended), _) => Some(ended.clone()),
            (Phase::Exited(_), _) => None,
        }
    };
    if let Some(ended) = again {
        container.record().phase = Phase::Restarting(ended.clone());
        restart_later(engine, container, &ended);
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
    fn pauses_double_up_to_a_minute() {
        assert_eq!(pause(0), Duration::from_millis(100));
        assert_eq!(pause(3), Duration::from_millis(800));
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
