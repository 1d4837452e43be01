//! Watches over a running container until its end, and does then what is to be done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::control::ExitReport;
use tokio::task::JoinHandle;

use super::launch::Run;
use super::{files, health, lack, networking, remove, restart_policy, shim};
use crate::clock::Timestamp;
use crate::container::record::{Ended, Phase};
use crate::container::{Container, Running};
use crate::engine::Engine;
use crate::task::{EndOf, ProcessExit, Task};
use crate::volumes;

/// How long the end of a container waits for its output to be taken; what is slower goes on while the container counts
/// as ended.
pub const DRAIN: Duration = Duration::from_secs(2);

/// Watches a run in the background.
pub fn watch(engine: &Arc<Engine>, container: &Arc<Container>, run: Run) {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    tokio::spawn(async move { supervise(&engine, &container, run).await });
}

async fn supervise(engine: &Arc<Engine>, container: &Arc<Container>, run: Run) {
    let checking = health::watch(engine, container, &run.task, run.started_at);
    let exit = tokio::select! {
        exit = exit_or_input_end(container, &run.task) => exit,
        never = lack::tell(engine, container, &run.task) => match never {},
        // The container goes on, and the next engine takes it up.
        () = engine.stopping.cancelled() => return,
    };
    let bundle = engine.bundle(&container.id);
    let report = match exit {
        Some(exit) => report_of(exit, &bundle).await,
        None if engine.stopping.is_cancelled() => return,
        None => {
            tracing::warn!(id = %container.id, "the container's shim is gone");
            shim::bury(engine, &container.id, &bundle).await
        }
    };
    drop(checking);
    drain(run.copying).await;
    let _lifecycle = container.lifecycle.lock().await;
    finish(engine, container, Some(&run.task), run.started_at, report).await;
}

/// Waits for the end; tells the shim meanwhile when clients have ended the process' input. None when the shim is gone.
async fn exit_or_input_end(container: &Container, task: &Task) -> Option<ProcessExit> {
    let wait = task.wait("");
    tokio::pin!(wait);
    let has_stdin = container.record().config_flag("OpenStdin");
    let exit = tokio::select! {
        exit = wait.as_mut() => exit,
        () = container.streams.stdin_closed(), if has_stdin => {
            if let Err(error) = task.close_stdin("").await {
                tracing::debug!(id = %container.id, %error, "the end of the input came too late");
            }
            wait.await
        }
    };
    exit.inspect_err(|error| tracing::debug!(id = %container.id, %error, "waiting for the container")).ok()
}

async fn report_of(exit: ProcessExit, bundle: &std::path::Path) -> ExitReport {
    let bundle: PathBuf = bundle.to_owned();
    let written = tokio::task::spawn_blocking(move || shim::read_report(&bundle)).await.ok().flatten();
    let plain =
        ExitReport { exit_code: exit.code, oom_killed: false, oom_kills: 0, error: None, exited_at_ns: exit.at.0 };
    written.filter(|report| report.exit_code == exit.code).unwrap_or(plain)
}

async fn drain(copying: JoinHandle<()>) {
    if tokio::time::timeout(DRAIN, copying).await.is_err() {
        tracing::debug!("a container's output is still being taken");
    }
}

/// Does everything that belongs to the end of a run. `task` is absent when the shim is gone.
///
/// When: the lifecycle is held, the output was drained.
pub async fn finish(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    task: Option<&Task>,
    started_at: Timestamp,
    report: ExitReport,
) {
    container.set_running(None);
    health::end(container);
    container.execs().values().for_each(|exec| exec.container_ended());
    let release = release(engine, container, task);
    // The kernel takes a good part of its time for a link that goes, the shim for its own end.
    let ((), (), ()) = tokio::join!(release, container.streams.end_run(), networking::release(engine, container));
    image::failpoint::reach("end.released");
    lack::tell_rest(engine, container, &report);
    let ended = Ended {
        started_at,
        finished_at: Timestamp(report.exited_at_ns),
        code: report.exit_code,
        error: report.error.unwrap_or_default(),
        oom_killed: report.oom_killed || container.record().phase.oom_kills() > 0,
    };
    let seconds = ended.ran_ns() / 1_000_000_000;
    container.emit(
        &engine.events,
        "die",
        &[("exitCode", ended.code.to_string()), ("execDuration", seconds.to_string())],
    );
    volumes::release(engine, container, true);
    // The engine of the host's next boot decides for itself.
    let restarts = !engine.host_goes_down.is_cancelled() && restart_policy::wants_restart(&container.record(), &ended);
    let phase = if restarts { Phase::Restarting(ended.clone()) } else { Phase::Exited(ended.clone()) };
    if let Err(error) = container.enter(phase).await {
        tracing::error!(id = %container.id, "{error}");
    }
    // Only now: until it is on record, an engine that takes over from this one finds the end in the bundle.
    shim::remove_files(engine.bundle(&container.id), engine.socket(&container.id)).await;
    container.tell(|progress| {
        progress.running = restarts;
        progress.exits += 1;
        progress.code = ended.code;
        progress.error.clone_from(&ended.error);
    });
    if restarts {
        restart_policy::restart_later(engine, container, ended.ran_ns());
    } else if container.record().host_flag("AutoRemove")
        && let Err(error) = remove::discard_with_volumes(engine, container).await
    {
        tracing::error!(id = %container.id, "cannot remove a container that has ended: {error}");
    }
}

/// Lets the shim clear away, and go; its bundle stays.
async fn release(engine: &Arc<Engine>, container: &Arc<Container>, task: Option<&Task>) {
    if task.is_some() {
        files::no_longer_used(container).await;
    }
    match task {
        // Its changes go with it, so nobody needs them on disk first.
        Some(task) if container.record().host_flag("AutoRemove") => task.shutdown(EndOf::TaskToo).await,
        Some(task) => {
            match task.delete("").await {
                Ok(()) => {}
                Err(error) if error.kind == proto::ErrorKind::Unavailable => {}
                Err(error) => {
                    tracing::warn!(id = %container.id, %error, "the shim could not clear away; its delete command does");
                    shim::delete(engine, container.id.as_str(), &engine.bundle(&container.id)).await;
                }
            }
            let task = task.clone();
            // Nobody waits for the shim's own end.
            tokio::spawn(async move { task.shutdown(EndOf::ShimOnly).await });
        }
        None => {}
    }
}

/// Takes up a container that an earlier engine started and whose shim answers.
pub fn take_up(engine: &Arc<Engine>, container: &Arc<Container>, shim_pid: u32, run: Run) {
    container.set_running(Some(Running { task: run.task.clone(), shim_pid }));
    container.tell(|progress| progress.running = true);
    watch(engine, container, run);
}
