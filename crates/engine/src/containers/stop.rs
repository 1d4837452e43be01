//! `POST /containers/{id}/stop` and `/restart`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::kill::{self, SIGKILL, Sender};
use super::{launch, restart_policy};
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;
use proto::ErrorKind;

/// How long a container may take to end when neither client nor configuration say.
const DEFAULT_SECONDS: i64 = 10;
/// How long the end of a killed container is waited for.
pub const KILLED: Duration = Duration::from_secs(10);

/// What a client says about stopping.
#[derive(Debug, Clone, Copy)]
struct Patience {
    signal: Option<u32>,
    seconds: Option<i64>,
}

impl Patience {
    fn read(query: &Query) -> ApiResult<Self> {
        let signal = query.get("signal").map(kill::parse_signal).transpose()?;
        Ok(Self { signal, seconds: query.number("t")? })
    }

    /// How long to wait before SIGKILL; forever when negative.
    fn duration(self, container: &Container) -> Option<Duration> {
        let configured = || container.record().config["StopTimeout"].as_i64();
        let seconds = self.seconds.or_else(configured).unwrap_or(DEFAULT_SECONDS);
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }
}

/// Asks a container to end, and ends it when it does not.
///
/// # Errors
/// 404; 304 when it does not run.
pub async fn stop(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let patience = Patience::read(&query)?;
    let stopped = end_for_good(&engine, &container, patience).await;
    if !stopped.map_err(|error| error.context(format!("cannot stop container: {id}")))? {
        return Err(ApiError::new(ErrorKind::NotModified, ""));
    }
    container.emit(&engine.events, "stop", &[]);
    Ok(StatusCode::NO_CONTENT)
}

/// Stops a container if it runs, and starts it.
///
/// # Errors
/// 404; what stopping and starting say.
pub async fn restart(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let patience = Patience::read(&query)?;
    let again = Arc::clone(&container);
    tokio::spawn(async move {
        cancel_restart(&again).await?;
        if again.running().is_ok() {
            end(&engine, &again, patience).await?;
            again.emit(&engine.events, "stop", &[]);
        }
        let _lifecycle = again.hold().await?;
        if !again.record().phase.is_running() {
            again.record().restarts = 0;
            again.pauses().reset();
            launch::launch(&engine, &again).await?;
        }
        again.emit(&engine.events, "restart", &[]);
        Ok(())
    })
    .await?
    .map_err(|error: ApiError| error.context(format!("Cannot restart container {id}")))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the present run, and whatever a restart policy makes of its end meanwhile; false if there was nothing to end.
async fn end_for_good(engine: &Arc<Engine>, container: &Arc<Container>, patience: Patience) -> ApiResult<bool> {
    let mut ended = false;
    loop {
        if cancel_restart(container).await? {
            return Ok(true);
        }
        if container.running().is_err() {
            // Its run may have ended just now by itself; what its policy made of that is known once the lifecycle is free.
            return Ok(cancel_restart(container).await? || ended);
        }
        end(engine, container, patience).await?;
        ended = true;
        if !restart_policy::has_policy(&container.record()) {
            return Ok(true);
        }
    }
}

/// A container that is about to be started again is not; true if it was.
async fn cancel_restart(container: &Arc<Container>) -> ApiResult<bool> {
    let _lifecycle = container.hold().await?;
    let Phase::Restarting(ended) = container.record().phase.clone() else { return Ok(false) };
    container.record().stopped_by_client = true;
    container.enter(Phase::Exited(ended)).await?;
    container.tell(|progress| progress.running = false);
    Ok(true)
}

async fn end(engine: &Arc<Engine>, container: &Arc<Container>, patience: Patience) -> ApiResult<()> {
    container.record().stopped_by_client = true;
    end_patiently(engine, container, patience, Sender::Client).await
}

/// Ends a container because the host goes down: with its own signal, in its own time. No client has stopped it by that.
///
/// # Errors
/// 500 when it does not end.
pub async fn end_with_host(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    end_patiently(engine, container, Patience { signal: None, seconds: None }, Sender::Host).await
}

async fn end_patiently(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    patience: Patience,
    sender: Sender,
) -> ApiResult<()> {
    let signal = patience.signal.map_or_else(|| kill::stop_signal(container), Ok)?;
    match kill::send(engine, container, signal, sender).await {
        Err(error) if error.kind == ErrorKind::Conflict => return see_end(container).await,
        other => other?,
    }
    if wait_for_end(container, patience.duration(container)).await {
        return Ok(());
    }
    force(engine, container, sender).await
}

/// Kills a container and waits for its end.
///
/// # Errors
/// 500 when it does not end.
pub async fn force(engine: &Arc<Engine>, container: &Arc<Container>, sender: Sender) -> ApiResult<()> {
    match kill::send(engine, container, SIGKILL, sender).await {
        Err(error) if error.kind == ErrorKind::Conflict => return see_end(container).await,
        other => other?,
    }
    if wait_for_end(container, Some(KILLED)).await {
        return Ok(());
    }
    Err(ApiError::internal(format!("tried to kill container {}, but did not receive an exit event", container.id)))
}

/// What has no process any more still counts as running until everything of its end is done, under the lifecycle.
async fn see_end(container: &Container) -> ApiResult<()> {
    drop(container.lifecycle.lock().await);
    Ok(())
}

/// Waits for the end of the present run; false when it takes longer than `patience` (absent: forever).
pub async fn wait_for_end(container: &Container, patience: Option<Duration>) -> bool {
    let mut progress = container.progress();
    let ended = async { progress.wait_for(|progress| !progress.running || progress.removed).await.is_ok() };
    match patience {
        Some(patience) => tokio::time::timeout(patience, ended).await.unwrap_or(false),
        None => ended.await,
    }
}
