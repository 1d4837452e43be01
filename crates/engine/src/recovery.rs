//! Takes up the containers of an engine that ended, however it ended.
//!
//! | record says | shim | then |
//! |---|---|---|
//! | runs | answers, runs | its output is copied on, and it is watched as before |
//! | runs | answers, stopped | its end is recorded as the shim tells it |
//! | runs | gone | its end is read from `exit.json`, or the shim's `delete` command makes it |
//! | does not run | any | a bundle that is there is cleared away: that start was not finished |
//! | none: it stood by | any | ends with its engine; its folder is removed |
//! | none or broken | – | the folder is what a creation left behind: removed (a record of a newer engine: kept) |

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use containerd_shim_protos::types::task::Status as TaskStatus;
use futures_util::future::join_all;

use crate::clock::Timestamp;
use crate::container::Container;
use crate::container::record::{FILE_NAME, Phase, Record, RecordError};
use crate::containers::{self, Run, supervise};
use crate::engine::Engine;
use crate::error::{ApiResult, chain};
use crate::log::LogWriter;
use crate::streams::fifo::{self, FifoSet};
use crate::streams::pump;
use crate::task::Task;
use crate::volumes;

/// Reads every record and takes up what runs.
///
/// # Errors
/// When the folder of containers cannot be read; a single container's trouble is logged and ends nothing.
pub async fn recover(engine: &Arc<Engine>) -> anyhow::Result<()> {
    let reader = Arc::clone(engine);
    let known = tokio::task::spawn_blocking(move || read_all(&reader)).await??;
    let ran: Vec<bool> = known.iter().map(|container| container.record().phase.is_running()).collect();
    volumes::adopt(engine, &known);
    join_all(known.iter().map(|container| take_up(engine, container))).await;
    volumes::settle(engine);
    settle_networks(engine).await?;
    containers::mend_networks(engine);
    clear_unknown_bundles(engine).await?;
    containers::clear_standby(engine).await;
    // An image that was removed while a container of the last run used it may have lost its last user.
    containers::collect_image(engine);
    containers::clear_leftovers(engine).await;
    engine.taken_up.cancel();
    for (container, ran) in known.iter().zip(ran) {
        // One that has ended since then has been told to restart already.
        if !ran {
            containers::apply_at_start(engine, container);
        }
    }
    if !known.is_empty() {
        let running = known.iter().filter(|container| container.record().phase.is_running()).count();
        tracing::info!(containers = known.len(), running, "took up the containers of the last run");
    }
    Ok(())
}

fn read_all(engine: &Engine) -> anyhow::Result<Vec<Arc<Container>>> {
    let folder = engine.containers_dir();
    let mut known = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let dir = entry?.path();
        match read_one(engine, dir.clone()) {
            Ok(container) => known.push(container),
            Err(RecordError::Newer(format)) => {
                tracing::error!(dir = %dir.display(), format, "a newer engine made this container; it is left alone");
            }
            Err(error) if !dir.join(FILE_NAME).exists() => {
                tracing::info!(dir = %dir.display(), %error, "removing a container whose creation was not finished");
                if let Err(error) = std::fs::remove_dir_all(&dir) {
                    tracing::warn!(dir = %dir.display(), %error, "cannot remove it");
                }
            }
            Err(error) => {
                tracing::error!(dir = %dir.display(), error = chain(&error), "cannot read a container; it is left alone");
            }
        }
    }
    Ok(known)
}

fn read_one(engine: &Engine, dir: PathBuf) -> Result<Arc<Container>, RecordError> {
    let mut record = Record::read(&dir)?;
    if record.mounts.is_empty() {
        // An engine without volumes made it.
        record.mounts = containers::plain_binds(&record.typed_host()?);
    }
    let container = Arc::new(Container::new(record, dir)?);
    engine.containers.add_known(Arc::clone(&container)).map_err(|error| RecordError::Log(error.message))?;
    Ok(container)
}

async fn take_up(engine: &Arc<Engine>, container: &Arc<Container>) {
    let phase = container.record().phase.clone();
    let Phase::Running { started_at, .. } = phase else {
        if engine.bundle(&container.id).exists() {
            tracing::info!(id = %container.id, "clearing away a start that was not finished");
            containers::delete_leftovers(engine, &container.id).await;
        }
        remove_if_overdue(engine, container).await;
        return;
    };
    match reconnect(engine, container, started_at).await {
        Ok(()) => containers::adopt_networks(engine, container).await,
        Err(error) => {
            tracing::warn!(id = %container.id, "its shim is gone: {error}");
            let _lifecycle = container.lifecycle.lock().await;
            let report = containers::bury(engine, &container.id, &engine.bundle(&container.id)).await;
            supervise::finish(engine, container, None, started_at, report).await;
        }
    }
}

/// Networks that nobody needs go, those of running containers come back.
async fn settle_networks(engine: &Arc<Engine>) -> anyhow::Result<()> {
    let all = engine.containers.all();
    let runs = |container: &&Arc<Container>| container.record().phase.is_running();
    let alive = all.iter().filter(runs).map(|container| container.id.to_string()).collect();
    let engine = Arc::clone(engine);
    Ok(tokio::task::spawn_blocking(move || engine.networks.settle(&alive)).await?)
}

/// A container with `--rm` whose removal the last engine did not finish.
async fn remove_if_overdue(engine: &Arc<Engine>, container: &Arc<Container>) {
    let overdue = {
        let record = container.record();
        record.host_flag("AutoRemove") && matches!(record.phase, Phase::Exited(_))
    };
    if overdue && let Err(error) = containers::discard_with_volumes(engine, container).await {
        tracing::error!(id = %container.id, "cannot remove a container that has ended: {error}");
    }
}

async fn reconnect(engine: &Arc<Engine>, container: &Arc<Container>, started_at: Timestamp) -> ApiResult<()> {
    let task = Task::connect(&engine.socket(&container.id), container.id.as_str()).await?;
    let (shim_pid, _) = task.pids().await?;
    let state = task.state().await?;
    let fifos = FifoSet::for_container(container.record().config_flag("OpenStdin"), container.terminal);
    let bundle = engine.bundle(&container.id);
    let ends = fifo::open(&fifos.paths(&bundle, ""))
        .map_err(|error| crate::error::ApiError::caused("cannot open the container's fifos", &error))?;
    let log = container.log.clone().map(|log| LogWriter::start(log, &bundle)).transpose();
    let log = log.map_err(|error| crate::error::ApiError::caused("cannot open the container's log", &error))?;
    container.streams.open_stdin(ends.stdin);
    let (streams, stopping) = (Arc::clone(&container.streams), engine.stopping.clone());
    let copying = engine.copying.spawn(async move { pump(ends.outputs, &streams, log, &stopping, true).await });
    let mut paused = state.status.enum_value() == Ok(TaskStatus::PAUSED);
    if paused && !container.record().phase.is_paused() {
        // Nobody asked for it: the last engine had begun a commit.
        paused = task.resume().await.is_err();
    }
    if let Phase::Running { paused: recorded, .. } = &mut container.record().phase {
        *recorded = paused;
    }
    supervise::take_up(engine, container, shim_pid, Run { task, copying, started_at });
    Ok(())
}

/// Bundles of containers that no record knows.
async fn clear_unknown_bundles(engine: &Arc<Engine>) -> anyhow::Result<()> {
    let folder = engine.bundles_dir();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Ok(id) = name.parse()
            && engine.containers.find(&name).is_err()
        {
            tracing::info!(id = name, "clearing away a bundle that belongs to no container");
            containers::delete_leftovers(engine, &id).await;
        }
    }
    Ok(())
}
