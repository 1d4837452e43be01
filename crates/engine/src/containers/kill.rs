//! `POST /containers/{id}/kill`, and signals by name.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use nix::sys::signal::Signal;
use proto::{ErrorKind, Status};

use super::{pause, stop};
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;

/// SIGKILL's number.
pub const SIGKILL: u32 = 9;
/// SIGTERM's number.
pub const SIGTERM: u32 = 15;
/// The highest signal there is.
const MAX_SIGNAL: u32 = 64;

/// Reads a signal: a number, or a name with or without `SIG`.
///
/// # Errors
/// 400 for anything else.
pub fn parse_signal(text: &str) -> ApiResult<u32> {
    let invalid = || ApiError::invalid(format!("invalid signal: {}", text.chars().take(100).collect::<String>()));
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=MAX_SIGNAL).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = realtime(name) {
        return Ok(number);
    }
    let signal: Signal = format!("SIG{name}").parse().map_err(|_| invalid())?;
    u32::try_from(signal as i32).map_err(|_| invalid())
}

/// `RTMIN`, `RTMIN+n`, `RTMAX-n`, `RTMAX`. Source: glibc keeps 32 and 33 for itself.
fn realtime(name: &str) -> Option<u32> {
    let (first, last) = (34, MAX_SIGNAL);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => first,
        (_, Some("")) => last,
        (Some(rest), _) => rest.strip_prefix('+')?.parse::<u32>().ok()?.checked_add(first)?,
        (_, Some(rest)) => last.checked_sub(rest.strip_prefix('-')?.parse().ok()?)?,
        (None, None) => return None,
    };
    (first..=last).contains(&number).then_some(number)
}

/// Sends a signal.
///
/// # Errors
/// 404; 400 for an unknown signal; 409 when it does not run.
pub async fn kill(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let failed = |error: ApiError| error.context(format!("cannot kill container: {id}"));
    let signal = query.get("signal").map_or(Ok(SIGKILL), parse_signal).map_err(failed)?;
    send(&engine, &container, signal, Sender::Client).await.map_err(failed)?;
    if signal == SIGKILL {
        stop::wait_for_end(&container, Some(stop::KILLED)).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// On whose behalf a signal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A client, who may by that forbid that the container is started again.
    Client,
    /// The host goes down; what ran is to run again when it comes up.
    Host,
}

/// Sends a signal to the first process.
///
/// # Errors
/// 409 when it does not run; the shim's.
pub async fn send(engine: &Arc<Engine>, container: &Arc<Container>, signal: u32, sender: Sender) -> ApiResult<()> {
    let running = container.running()?;
    let effect = Effect::of(container, signal)?;
    if effect.forbids_restart && sender == Sender::Client {
        container.record().stopped_by_client = true;
    }
    let wakes = effect.ends && container.record().phase.is_paused();
    let send = running.task.kill("", signal, false);
    let sent = if wakes && signal != SIGKILL {
        // A frozen utility VM takes the signal only when it goes on.
        let (sent, woken) = tokio::join!(send, running.task.resume());
        match woken {
            Ok(()) => {
                pause::set_paused(container, false).await?;
                container.emit(&engine.events, "unpause", &[]);
            }
            // Another client was quicker, or it has ended.
            Err(error) if error.kind == ErrorKind::FailedPrecondition || is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
        sent
    } else {
        send.await
    };
    match sent {
        Ok(()) => {}
        // It has just ended by itself.
        Err(error) if is_gone(&error) => {}
        Err(error) => return Err(error.into()),
    }
    container.emit(&engine.events, "kill", &[("signal", signal.to_string())]);
    if wakes && signal == SIGKILL {
        // A stopped process takes no signal, not even this one, before it goes on.
        match running.task.resume().await {
            Err(error) if !is_gone(&error) => {
                tracing::warn!(id = %container.id, %error, "cannot let a paused container go on to its end");
            }
            _ => {}
        }
    }
    Ok(())
}

/// The process has ended, and perhaps its shim.
fn is_gone(error: &Status) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::Unavailable)
}

/// What a client's signal does beside being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Effect {
    /// It is to end the container: one that is paused goes on for it.
    ends: bool,
    /// The container is not started again after this run, whatever ends it.
    forbids_restart: bool,
}

impl Effect {
    fn of(container: &Container, signal: u32) -> ApiResult<Self> {
        let (configured, policy) = {
            let record = container.record();
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (text(&record.config["StopSignal"]), text(&record.host["RestartPolicy"]["Name"]))
        };
        let stop_signal = if configured.is_empty() { None } else { Some(parse_signal(&configured)?) };
        Ok(Self::decide(stop_signal, &policy, signal))
    }

    /// Source: moby `daemon.killWithSignal` and `restartmanager.ShouldRestart`. Without a stop signal of its own every signal
    /// is taken for one; `unless-stopped` counts every signal of a client as its stopping.
    fn decide(stop_signal: Option<u32>, policy: &str, signal: u32) -> Self {
        let ends = signal == SIGKILL || stop_signal.is_none_or(|stop| stop == signal);
        Self { ends, forbids_restart: ends || policy == "unless-stopped" }
    }
}

/// The signal that asks the container to end.
///
/// # Errors
/// 400 when the configuration names none that exists.
pub fn stop_signal(container: &Container) -> ApiResult<u32> {
    let configured = container.record().config["StopSignal"].as_str().unwrap_or_default().to_owned();
    if configured.is_empty() { Ok(SIGTERM) } else { parse_signal(&configured) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_forbid_a_restart_as_in_dockerd() {
        let (hup, term) = (1, SIGTERM);
        for (stop, policy, signal, ends, forbids_restart) in [
            (None, "always", hup, true, true),
            (None, "on-failure", hup, true, true),
            (Some(term), "always", hup, false, false),
            (Some(term), "on-failure", hup, false, false),
            (Some(term), "unless-stopped", hup, false, true),
            (Some(hup), "always", hup, true, true),
            (Some(term), "always", SIGKILL, true, true),
        ] {
            assert_eq!(
                Effect::decide(stop, policy, signal),
                Effect { ends, forbids_restart },
                "{stop:?} {policy} {signal}"
            );
        }
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("9", 9),
            ("TERM", 15),
            ("sigusr1", 10),
            ("SIGWINCH", 28),
            ("RTMIN+3", 37),
            ("SIGRTMAX", 64),
            ("RTMAX-30", 34),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "NOPE", "RTMIN+31", "RTMAX-31", "SIGSIGTERM"] {
            assert_eq!(parse_signal(bad).unwrap_err().http_status(), 400, "{bad}");
        }
    }
}
