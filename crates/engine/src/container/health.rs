//! Whether a container does its work: what is asked of it, how often, and what its answers mean.
//!
//! ```text
//!             first success
//!   Starting ---------------> Healthy <--- success ---\
//!       \                        \                      Unhealthy
//!        \-- `retries` failures --\-- as many in a row --/   ^
//!            (those of the start period do not count)        \--- the run ends
//! ```
//!
//! Source: moby `daemon/health.go`.

use std::collections::VecDeque;
use std::time::Duration;

use bollard::models::{ContainerConfig, HealthConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::error::{ApiError, ApiResult};

/// How many answers are kept.
const KEPT: usize = 5;
/// How much of an answer's output is kept, bytes.
pub const MAX_OUTPUT_BYTES: usize = 4096;
/// The shortest time that can be asked for, nanoseconds.
const MINIMUM_NS: i64 = 1_000_000;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// What is asked of a container, every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What runs in the container; its end with 0 is a success.
    pub command: Vec<String>,
    /// Time between the end of one and the start of the next.
    pub interval: Duration,
    /// The same while the container is starting, within its start period.
    pub start_interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// How long after the start failures do not count.
    pub start_period: Duration,
    /// How many failures in a row make it unhealthy.
    pub retries: u32,
}

impl Check {
    /// The check of a container that is configured so; none when it has none, or a form that nobody knows.
    #[must_use]
    pub fn of(config: &ContainerConfig) -> Option<Self> {
        let health = config.healthcheck.as_ref()?;
        let (form, rest) = health.test.as_deref().unwrap_or_default().split_first()?;
        let command = match form.as_str() {
            "CMD" => rest.to_vec(),
            "CMD-SHELL" => {
                let own = config.shell.clone().filter(|shell| !shell.is_empty());
                let mut shell = own.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
                shell.extend_from_slice(rest);
                shell
            }
            "NONE" => return None,
            other => {
                tracing::warn!(form = other, "unknown form of a health check");
                return None;
            }
        };
        let time = |ns: Option<i64>, default: Duration| {
            let ns = ns.and_then(|ns| u64::try_from(ns).ok()).filter(|ns| *ns > 0);
            ns.map_or(default, Duration::from_nanos)
        };
        let retries = health.retries.and_then(|retries| u32::try_from(retries).ok()).filter(|retries| *retries > 0);
        Some(Self {
            command,
            interval: time(health.interval, INTERVAL),
            start_interval: time(health.start_interval, START_INTERVAL),
            timeout: time(health.timeout, TIMEOUT),
            start_period: time(health.start_period, Duration::ZERO),
            retries: retries.unwrap_or(RETRIES),
        })
    }
}

/// Refuses what can be no check.
///
/// # Errors
/// 400 in dockerd's words.
pub fn validate(health: &HealthConfig) -> ApiResult<()> {
    let times = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (name, time) in times {
        if time.is_some_and(|time| time != 0 && time < MINIMUM_NS) {
            return Err(ApiError::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if health.retries.is_some_and(|retries| retries < 0) {
        return Err(ApiError::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

/// Fills what the client left open from the image's check. Source: moby `runconfig.Merge`.
pub fn merge(mine: &mut Option<HealthConfig>, image: Option<&HealthConfig>) {
    let Some(image) = image else { return };
    let Some(mine) = mine else {
        *mine = Some(image.clone());
        return;
    };
    if mine.test.as_ref().is_none_or(Vec::is_empty) {
        mine.test.clone_from(&image.test);
    }
    for (mine, image) in [
        (&mut mine.interval, image.interval),
        (&mut mine.timeout, image.timeout),
        (&mut mine.start_period, image.start_period),
        (&mut mine.start_interval, image.start_interval),
        (&mut mine.retries, image.retries),
    ] {
        if mine.is_none_or(|value| value == 0) {
            *mine = image;
        }
    }
}

/// What the answers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Nothing is known yet.
    Starting,
    /// The last answer was good.
    Healthy,
    /// Too many were not, or nobody asks any more.
    Unhealthy,
}

impl HealthStatus {
    /// The word in `State.Health.Status`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// When it was asked.
    pub start: Timestamp,
    /// When it was known.
    pub end: Timestamp,
    /// Exit code; -1 when there was none in time.
    pub code: i64,
    /// What it said, [`MAX_OUTPUT_BYTES`] and a few words at most.
    pub output: String,
}

/// A container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What the answers mean.
    pub status: HealthStatus,
    /// Failures since the last success that count.
    pub failing_streak: u32,
    /// The last answers, oldest first.
    pub log: VecDeque<Answer>,
}

impl Health {
    /// Of a run that begins: the answers of the run before are kept.
    #[must_use]
    pub fn starting(before: Option<Self>) -> Self {
        let log = before.map(|health| health.log).unwrap_or_default();
        Self { status: HealthStatus::Starting, failing_streak: 0, log }
    }

    /// Takes an answer. True when the status has changed.
    pub fn take(&mut self, answer: Answer, check: &Check, started_at: Timestamp) -> bool {
        let before = self.status;
        let (code, asked_at) = (answer.code, answer.start);
        while self.log.len() >= KEPT {
            self.log.pop_front();
        }
        self.log.push_back(answer);
        let after_start = Duration::from_nanos(u64::try_from(asked_at.0 - started_at.0).unwrap_or(0));
        if code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if before != HealthStatus::Starting || after_start >= check.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.status != before
    }

    /// How long until it is asked again.
    #[must_use]
    pub fn pause(&self, check: &Check, started_at: Timestamp) -> Duration {
        let starting = self.status == HealthStatus::Starting && started_at.elapsed() < check.start_period;
        if starting { check.start_interval } else { check.interval }
    }

    /// `State.Health`.
    #[must_use]
    pub fn shown(&self) -> Value {
        let answer = |answer: &Answer| {
            json!({
                "Start": answer.start.to_rfc3339_nano(), "End": answer.end.to_rfc3339_nano(),
                "ExitCode": answer.code, "Output": answer.output,
            })
        };
        let log: Vec<Value> = self.log.iter().map(answer).collect();
        json!({ "Status": self.status.word(), "FailingStreak": self.failing_streak, "Log": log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "tests read better with json!() as the argument")]
    fn config(health: Value) -> ContainerConfig {
        serde_json::from_value(json!({ "Healthcheck": health })).unwrap()
    }

    fn check(health: Value) -> Check {
        Check::of(&config(health)).unwrap()
    }

    fn answer(code: i64, at: i64) -> Answer {
        Answer { start: Timestamp(at), end: Timestamp(at + 1), code, output: String::new() }
    }

    #[test]
    fn the_forms_of_a_test_are_dockers() {
        let plain = check(json!({ "Test": ["CMD", "a", "b"] }));
        assert_eq!((plain.command.join(" "), plain.retries, plain.interval), ("a b".into(), 3, INTERVAL));
        assert_eq!(check(json!({ "Test": ["CMD-SHELL", "x y"] })).command, ["/bin/sh", "-c", "x y"]);
        for none in [json!({}), json!({ "Test": [] }), json!({ "Test": ["NONE"] }), json!({ "Test": ["ODD", "x"] })] {
            assert_eq!(Check::of(&config(none.clone())), None, "{none}");
        }
        let own: ContainerConfig =
            serde_json::from_value(json!({ "Shell": ["/b", "-x"], "Healthcheck": { "Test": ["CMD-SHELL", "y"] } }))
                .unwrap();
        assert_eq!(Check::of(&own).unwrap().command, ["/b", "-x", "y"]);
    }

    #[test]
    fn what_the_client_leaves_open_is_the_images() {
        let image = config(json!({ "Test": ["CMD", "i"], "Interval": 5_000_000, "Retries": 7 })).healthcheck;
        let mut mine = config(json!({ "Interval": 9_000_000, "Timeout": 0 })).healthcheck;
        merge(&mut mine, image.as_ref());
        let merged = mine.unwrap();
        assert_eq!(
            (merged.test.unwrap(), merged.interval, merged.retries),
            (vec!["CMD".into(), "i".into()], Some(9_000_000), Some(7))
        );
        let mut nothing = None;
        merge(&mut nothing, image.as_ref());
        assert_eq!(nothing, image);
    }

    #[test]
    fn times_that_cannot_be_are_refused() {
        for (health, text) in [
            (json!({ "Interval": 5 }), "Interval in Healthcheck cannot be less than 1ms"),
            (json!({ "StartInterval": -1 }), "StartInterval in Healthcheck cannot be less than 1ms"),
            (json!({ "Retries": -1 }), "Retries in Healthcheck cannot be negative"),
        ] {
            assert_eq!(validate(&config(health).healthcheck.unwrap()).unwrap_err().message, text);
        }
    }

    #[test]
    fn failures_count_after_the_start_period_and_success_ends_it() {
        let check = check(json!({ "Test": ["CMD", "x"], "StartPeriod": 1_000_000_000, "Retries": 2 }));
        let mut health = Health::starting(None);
        let started = Timestamp(0);
        for _ in 0..9 {
            assert!(!health.take(answer(1, 500_000_000), &check, started));
        }
        assert_eq!((health.failing_streak, health.log.len()), (0, KEPT));
        assert!(health.take(answer(0, 600_000_000), &check, started));
        // Once it was healthy, the start period protects it no more.
        assert!(!health.take(answer(1, 700_000_000), &check, started));
        assert!(health.take(answer(-1, 800_000_000), &check, started));
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Unhealthy, 2));
        assert!(health.take(answer(0, 900_000_000), &check, started));
        let next = Health::starting(Some(health));
        assert_eq!((next.status.word(), next.log.len(), next.failing_streak), ("starting", KEPT, 0));
    }
}
