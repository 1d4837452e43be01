//! Brings a container to life: bundle, shim, Create, Start.

use std::sync::{Arc, Once};

use proto::{ErrorKind, Isolation};
use tokio::task::JoinHandle;

use super::bundle::{self, Bundle};
use super::{health, networking, shim, supervise};
use crate::clock::Timestamp;
use crate::container::record::{Fault, Phase};
use crate::container::{Container, Running};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::log::LogWriter;
use crate::standby::Kind;
use crate::streams::{self, fifo};
use crate::task::Task;
use crate::volumes;
use proto::control::{Accelerator, UtilityVmReport};

/// What a run consists of, for whoever watches over it.
pub struct Run {
    /// The shim.
    pub task: Task,
    /// Copies its output until that has ended.
    pub copying: JoinHandle<()>,
    /// Since when.
    pub started_at: Timestamp,
}

/// Starts a container that does not run. Whatever fails is undone and kept as the container's fault.
///
/// When: its lifecycle is held.
///
/// # Errors
/// 400 when the command cannot be executed, in the words by which the docker CLI chooses 127 and 126; 503 when the host
/// goes down; the shim's and the bundle's errors otherwise.
pub async fn launch(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    if engine.host_goes_down.is_cancelled() {
        return Err(ApiError::new(ErrorKind::Unavailable, "the host is going down"));
    }
    let start = (container.isolation == Isolation::Hyperv).then(|| engine.standby.note_start());
    match try_launch(engine, container).await {
        Ok(run) => {
            start.into_iter().for_each(|start| start.succeeded(pays_to_stand_by(engine, container)));
            supervise::watch(engine, container, run);
            networking::prepare_next(engine);
            Ok(())
        }
        Err(error) => {
            let error = explain(&error);
            tracing::info!(id = %container.id, error = error.message, "a container did not start");
            tracing::debug!(id = %container.id, "its shim said:\n{}", shim::log_tail(&engine.bundle(&container.id)));
            shim::delete_leftovers(engine, &container.id).await;
            networking::release(engine, container).await;
            container.set_running(None);
            volumes::release(engine, container, false);
            let fault = Fault { code: fault_code(&error), error: error.message.clone() };
            container.tell(|progress| {
                progress.running = false;
                progress.code = fault.code;
                // The client that started it has the error; one that waits is told of runs only.
                progress.error.clear();
            });
            let phase = container.record().phase.after_fault(fault);
            if let Err(unsaved) = container.enter(phase).await {
                tracing::error!(id = %container.id, "{unsaved}");
            }
            container.streams.end_run().await;
            Err(error)
        }
    }
}

async fn try_launch(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<Run> {
    if engine.bundle(&container.id).exists() {
        shim::delete_leftovers(engine, &container.id).await;
    }
    // Operations on its files end first: they have its changes mounted.
    let files = container.files.write().await;
    let bundle = prepare(engine, container).await?;
    shim::reap(bundle.shim_pid);
    networking::announce(engine, container, "connect");
    let ends =
        fifo::open(&bundle.stdio).map_err(|error| ApiError::caused("cannot open the container's fifos", &error))?;
    let task = Task::connect(&bundle.socket, container.id.as_str()).await?;
    task.create(&bundle.dir, &bundle.stdio).await?;
    drop(files);
    let log = container.log.clone().map(|log| LogWriter::start(log, &bundle.dir)).transpose();
    let log = log.map_err(|error| ApiError::caused("cannot open the container's log", &error))?;
    container.set_running(Some(Running { task: task.clone(), shim_pid: bundle.shim_pid }));
    container.streams.open_stdin(ends.stdin);
    let (streams, stopping) = (Arc::clone(&container.streams), engine.stopping.clone());
    let copying =
        engine.copying.spawn(async move { streams::pump(ends.outputs, &streams, log, &stopping, false).await });
    set_first_size(container, &task).await;
    let started = task.start("").await;
    let pid = match started {
        Ok(pid) => pid,
        Err(status) => {
            copying.abort();
            return Err(status.into());
        }
    };
    let started_at = Timestamp::now();
    note_utility_vm(container, &bundle).await;
    container.record().stopped_by_client = false;
    health::begin(container)?;
    container.enter(Phase::Running { pid, started_at, paused: false, oom_kills: 0 }).await?;
    container.tell(|progress| progress.running = true);
    volumes::mounted(engine, container);
    container.emit(&engine.events, "start", &[]);
    Ok(Run { task, copying, started_at })
}

async fn prepare(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<Bundle> {
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    tokio::task::spawn_blocking(move || bundle::prepare(&engine, &container)).await?
}

/// The terminal has its size from the first byte on.
async fn set_first_size(container: &Container, task: &Task) {
    if !container.terminal {
        return;
    }
    let size = container.record().host["ConsoleSize"].as_array().cloned().unwrap_or_default();
    let number = |index: usize| size.get(index).and_then(|value| u32::try_from(value.as_u64()?).ok()).unwrap_or(0);
    let (height, width) = (number(0), number(1));
    if height == 0 || width == 0 {
        return;
    }
    if let Err(error) = task.resize("", width, height).await {
        tracing::debug!(id = %container.id, %error, "the terminal has no first size");
    }
}

/// Keeps what the shim reports of the utility VM.
async fn note_utility_vm(container: &Arc<Container>, bundle: &Bundle) {
    if container.isolation != Isolation::Hyperv {
        return;
    }
    let path = bundle.dir.join(UtilityVmReport::FILE_NAME);
    match tokio::fs::read(&path)
        .await
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_slice::<UtilityVmReport>(&text).map_err(|error| error.to_string()))
    {
        Ok(report) => {
            warn_of_emulation(report.accelerator);
            container.record().utility_vm = Some(report);
        }
        Err(error) => tracing::warn!(id = %container.id, error, "cannot read the report of the utility VM"),
    }
}

/// What is worth its memory for the next one: with hardware virtualization a fork is quick by itself, and a process suffices.
fn pays_to_stand_by(engine: &Engine, container: &Container) -> Kind {
    let emulated = || {
        let record = container.record();
        record.utility_vm.as_ref().is_some_and(|report| report.accelerator == Accelerator::Tcg)
    };
    if engine.settings.standby_vms.is_some() || emulated() { Kind::Vm } else { Kind::Process }
}

/// Says in the log, once, that utility VMs on this host keep nobody in. `info` and `inspect` say it too.
fn warn_of_emulation(accelerator: Accelerator) {
    static TOLD: Once = Once::new();
    if accelerator == Accelerator::Tcg {
        TOLD.call_once(|| {
            tracing::warn!(
                boundary = accelerator.boundary(),
                "hyperv containers on this host have a kernel of their own and no security boundary; \
                 --require-boundary refuses them"
            );
        });
    }
}

/// The phrases by which the docker CLI tells a command that is not there (127) or not executable (126) from a fault of
/// the engine (125). Source: docker/cli `cli/command/container/run.go`, `toStatusError`.
const NOT_FOUND: [&str; 3] = ["executable file not found", "no such file or directory", "system cannot find the file"];
const NOT_EXECUTABLE: [&str; 2] = ["permission denied", "is a directory"];

/// Exit code of a process that could not be started for a reason other than its command. Source: moby.
pub const NOT_STARTED: u32 = 128;

/// The error speaks of the command that the container was to run.
pub fn is_command_fault(error: &ApiError) -> bool {
    let kind = matches!(error.kind, ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::InvalidArgument);
    kind && error.message.contains("exec: \"")
}

/// Puts an error into Docker's words: a command's fault with its phrase, everything else without any such phrase.
fn explain(error: &ApiError) -> ApiError {
    if is_command_fault(error) {
        let text = format!("failed to create task for container: {}", error.message);
        return ApiError::invalid(text);
    }
    let mut message = error.message.clone();
    for phrase in NOT_FOUND.iter().chain(&NOT_EXECUTABLE) {
        message = message.replace(phrase, &phrase.to_uppercase());
    }
    ApiError::new(error.kind, message)
}

/// What the container's exit code becomes.
pub fn fault_code(error: &ApiError) -> u32 {
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| error.message.contains(phrase));
    match () {
        () if has(&NOT_FOUND) => 127,
        () if has(&NOT_EXECUTABLE) => 126,
        () => NOT_STARTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_fault_keeps_its_phrase_and_an_engine_fault_loses_it() {
        let cases = [
            (ErrorKind::NotFound, "exec: \"foo\": executable file not found in $PATH", 127, 400),
            (ErrorKind::PermissionDenied, "exec: \"/etc\": permission denied", 126, 400),
            (ErrorKind::NotFound, "kernel: no such file or directory", 128, 404),
            (ErrorKind::Internal, "exec: \"x\": permission denied", 128, 500),
        ];
        for (kind, text, code, status) in cases {
            let error = explain(&ApiError::new(kind, text));
            assert_eq!((fault_code(&error), error.http_status().as_u16()), (code, status), "{text}");
        }
    }
}
