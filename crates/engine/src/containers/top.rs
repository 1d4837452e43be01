//! `GET /containers/{id}/top`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use containerd_shim_protos::api::ProcessInfo;
use proto::ProcessDetails;
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;

/// The columns of `ps -ef`.
const TITLES: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// Lists a container's processes: of a hyperv container as its own kernel counts them.
///
/// # Errors
/// 404; 409 when it does not run; 501 for other columns.
pub async fn top(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<Json<Value>> {
    let container = engine.containers.find(&id)?;
    let columns = query.get("ps_args").unwrap_or("-ef");
    if !matches!(columns, "-ef" | "ef") {
        return Err(ApiError::not_implemented(format!(
            "ps option {columns:?}: not supported by this version of Bulkhead; leave it out"
        )));
    }
    let processes = container.running()?.task.processes().await?;
    container.emit(&engine.events, "top", &[]);
    let now = Timestamp::now();
    let rows: Vec<_> = processes.iter().map(|process| row(process, now)).collect();
    Ok(Json(json!({ "Titles": TITLES, "Processes": rows })))
}

fn row(process: &ProcessInfo, now: Timestamp) -> [String; 8] {
    let details = process.info.as_ref().filter(|info| info.type_url == ProcessDetails::TYPE_URL);
    match details.and_then(|info| serde_json::from_slice::<ProcessDetails>(&info.value).ok()) {
        Some(details) => describe(&details, now),
        None => [
            "?".into(),
            process.pid.to_string(),
            "?".into(),
            "0".into(),
            "?".into(),
            "?".into(),
            "?".into(),
            "?".into(),
        ],
    }
}

fn describe(process: &ProcessDetails, now: Timestamp) -> [String; 8] {
    let user = if process.user_id == 0 { "root".into() } else { process.user_id.to_string() };
    let started = Timestamp(process.started_at_ns);
    let lived_ms = u64::try_from((now.0 - started.0) / 1_000_000).unwrap_or(0).max(1);
    let percent = (process.cpu_ms * 100 / lived_ms).min(99);
    let seconds = process.cpu_ms / 1000;
    [
        user,
        process.pid.to_string(),
        process.parent.to_string(),
        percent.to_string(),
        started.to_hour_minute(),
        process.terminal.clone(),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        printable(&process.command),
    ]
}

/// A command comes from the container: nothing in it may steer the client's terminal.
fn printable(command: &str) -> String {
    command.chars().take(4096).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_as_ps_writes_it() {
        let details = ProcessDetails {
            pid: 7,
            parent: 1,
            user_id: 0,
            terminal: "pts/0".into(),
            started_at_ns: 3_600_000_000_000,
            cpu_ms: 61_000,
            command: "sh\u{1b}[2J -c x".into(),
        };
        let now = Timestamp(3_600_000_000_000 + 122_000_000_000);
        assert_eq!(describe(&details, now), ["root", "7", "1", "50", "01:00", "pts/0", "00:01:01", "sh?[2J -c x"]);
    }
}
