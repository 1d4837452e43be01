//! `GET /containers/{id}/top`: a container's processes in the columns of ps(1).

mod columns;
mod ps;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use columns::Column;
use containerd_shim_protos::api::ProcessInfo;
use proto::{Isolation, ProcessDetails};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::query::Query;

/// Lists a container's processes: of a process container as the host's ps shows them, of a hyperv container as its own
/// kernel counts them (and of both where the host has no ps).
///
/// # Errors
/// 404; 409 when it does not run; 500 for what ps does not understand, 501 for columns that are not known of a hyperv
/// container.
pub async fn top(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<Json<Value>> {
    let container = engine.containers.find(&id)?;
    let arguments = query.get("ps_args").unwrap_or("-ef");
    let processes = container.running()?.task.processes().await?;
    let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    let listing = match container.isolation {
        Isolation::Process => ps::list(arguments, &pids).await?,
        Isolation::Hyperv => None,
    };
    let shown = match listing {
        Some(listing) => json!({ "Titles": listing.titles, "Processes": listing.rows }),
        None => by_columns(&columns::of_arguments(arguments)?, &processes),
    };
    container.emit(&engine.events, "top", &[]);
    Ok(Json(shown))
}

fn by_columns(columns: &[Column], processes: &[ProcessInfo]) -> Value {
    let now = Timestamp::now();
    let row = |process: ProcessDetails| columns.iter().map(|column| column.show(&process, now)).collect();
    let rows: Vec<Vec<String>> = processes.iter().filter_map(details).map(row).collect();
    let titles: Vec<&String> = columns.iter().map(|column| &column.title).collect();
    json!({ "Titles": titles, "Processes": rows })
}

/// None of a process that has ended meanwhile.
fn details(process: &ProcessInfo) -> Option<ProcessDetails> {
    let details = process.info.as_ref().filter(|info| info.type_url == ProcessDetails::TYPE_URL)?;
    serde_json::from_slice(&details.value).ok()
}
