//! Tells that the kernel has killed a container's process for want of memory: when it happens, since the container may go on, and of
//! each no more than once, whichever engine has told of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use proto::control::ExitReport;

use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::task::Task;

/// How old a container's run is before its shim is asked: most that end soon never need to be, and what was not told is told with the end.
const PATIENCE: Duration = Duration::from_millis(200);

/// Tells what the shim tells, which is at most once a second. Shape: never ends; when the container has ended, it waits to be dropped.
pub async fn tell(engine: &Engine, container: &Arc<Container>, task: &Task) -> Infallible {
    tokio::time::sleep(PATIENCE).await;
    loop {
        let told = container.record().phase.oom_kills();
        match task.oom_kills_after(told).await {
            Ok(kills) if kills > told => note(engine, container, kills).await,
            Ok(_) => break,
            Err(error) => {
                // An older shim does not know the question, and one that has gone is somebody else's matter.
                tracing::debug!(id = %container.id, %error, "a lack of memory is told with the end only");
                break;
            }
        }
    }
    std::future::pending().await
}

async fn note(engine: &Engine, container: &Arc<Container>, kills: u64) {
    if let Phase::Running { oom_kills, .. } = &mut container.record().phase {
        *oom_kills = kills;
    }
    container.emit(&engine.events, "oom", &[]);
    if let Err(error) = container.save().await {
        tracing::error!(id = %container.id, "{error}");
    }
}

/// Tells what happened since, when the run has ended. When: before the phase says so.
pub fn tell_rest(engine: &Engine, container: &Container, report: &ExitReport) {
    if report.least_oom_kills() > container.record().phase.oom_kills() {
        container.emit(&engine.events, "oom", &[]);
    }
}
