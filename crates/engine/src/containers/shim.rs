//! The shim's process: started detached with its listening socket, reaped when it ends, replaced by its `delete` command
//! when it died.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use proto::ContainerId;
use proto::control::ExitReport;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid};

use crate::clock::Timestamp;
use crate::container::record::CODE_UNKNOWN;
use crate::engine::Engine;
use crate::sys::{self, Detached};

/// The namespace that our shims are told; containerd's own names differ, so that nothing collides.
const NAMESPACE: &str = "bulkhead";
/// Bound of the shim's `delete` command.
const DELETE: Duration = Duration::from_secs(30);

/// Binds the shim's socket, starts the shim, and returns its process id. The socket accepts from now on: whoever
/// connects waits for the shim's first accept, and is cut off if it dies before.
///
/// When: in a blocking thread; the bundle's folder is there.
///
/// # Errors
/// What bind and spawn say.
pub fn spawn(engine: &Engine, id: &ContainerId, bundle: &Path, socket: &Path) -> io::Result<u32> {
    spawn_with(engine, &["-id", id.as_str()], bundle, socket)
}

/// As [`spawn`], for a shim that has no container yet. When: the bundle is complete; the shim answers once its utility VM
/// is ready.
///
/// # Errors
/// What bind and spawn say.
pub fn spawn_standby(engine: &Engine, id: &str, bundle: &Path, socket: &Path) -> io::Result<u32> {
    spawn_with(engine, &["-id", id, "-standby"], bundle, socket)
}

fn spawn_with(engine: &Engine, flags: &[&str], bundle: &Path, socket: &Path) -> io::Result<u32> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    let mut args = vec!["-namespace", NAMESPACE];
    args.extend(flags);
    if engine.changeable().debug {
        args.push("-debug");
    }
    args.push("serve");
    let log = bundle.join("shim.log");
    sys::spawn_detached(&Detached {
        program: &engine.settings.shim,
        args: &args,
        folder: bundle,
        output: &log,
        socket: listener.as_fd(),
    })
}

/// Ends and reaps a shim that was spawned for nothing: it has no container yet. When: in a thread that may wait.
pub fn kill_new(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let ended = kill_process(pid, Signal::KILL).and_then(|()| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
    if let Err(error) = ended {
        tracing::warn!(%error, "cannot end a shim that was started for nothing");
    }
}

/// Reaps a shim when it ends. When: in the engine that spawned it; one that was taken over is its adopter's to reap.
pub fn reap(pid: u32) {
    tokio::spawn(async move {
        if let Err(error) = reaped(pid).await {
            tracing::warn!(pid, %error, "cannot reap a shim");
        }
    });
}

/// Waits for a shim's end, and reaps it.
///
/// # Errors
/// It is no child of the engine, or was reaped.
pub async fn reaped(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = sys::awaitable(pidfd_open(pid, PidfdFlags::NONBLOCK)?, tokio::io::Interest::READABLE)?;
    let _ready = pidfd.readable().await?;
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    Ok(())
}

/// Ends what a dead shim left and says how the container ended. Whatever goes wrong, the answer is an end.
pub async fn bury(engine: &Arc<Engine>, id: &ContainerId, bundle: &Path) -> ExitReport {
    if let Some(report) = read_report(bundle) {
        delete(engine, id.as_str(), bundle).await;
        return report;
    }
    let unknown = |error: &str| ExitReport {
        exit_code: CODE_UNKNOWN,
        oom_killed: false,
        oom_kills: 0,
        error: Some(error.into()),
        exited_at_ns: Timestamp::now().0,
    };
    if !bundle.exists() {
        // Bundles are in memory, as a rule: nothing of the run is left to clear away.
        return unknown("the host went down, or the engine's runtime folder was emptied, while it ran");
    }
    delete(engine, id.as_str(), bundle).await;
    read_report(bundle).unwrap_or_else(|| unknown("the container's shim ended unexpectedly"))
}

/// How the container ended, if its shim has written it.
pub fn read_report(bundle: &Path) -> Option<ExitReport> {
    serde_json::from_slice(&std::fs::read(bundle.join(ExitReport::FILE_NAME)).ok()?).ok()
}

/// Runs the shim's `delete` command, which kills and unmounts what is left. May be repeated.
pub async fn delete(engine: &Engine, id: &str, bundle: &Path) {
    let child = tokio::process::Command::new(&engine.settings.shim)
        .args(["-namespace", NAMESPACE, "-id", id, "-bundle"])
        .arg(bundle)
        .arg("delete")
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(DELETE, child).await {
        Ok(Ok(output)) if output.status.success() => {}
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            tracing::warn!(id, status = %output.status, text = text.trim(), "cannot clear away what a shim left");
        }
        Ok(Err(error)) => tracing::warn!(id, %error, "cannot run the shim to clear away what another left"),
        Err(_) => tracing::warn!(id, "clearing away what a shim left takes too long"),
    }
}

/// Takes away the bundle and socket of a container that is not to run, with whatever runs of it.
pub async fn delete_leftovers(engine: &Arc<Engine>, id: &ContainerId) {
    let bundle = engine.bundles_dir().join(id.as_str());
    if bundle.exists() {
        delete(engine, id.as_str(), &bundle).await;
    }
    remove_files(bundle, engine.socket(id)).await;
}

/// Removes a bundle's folder and a shim's socket; what is not there is none to remove.
pub async fn remove_files(bundle: std::path::PathBuf, socket: std::path::PathBuf) {
    let removed = tokio::task::spawn_blocking(move || {
        let absent_is_fine = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        absent_is_fine(std::fs::remove_file(socket)).and(absent_is_fine(std::fs::remove_dir_all(bundle)))
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot remove a bundle"),
        Err(error) => tracing::warn!(%error, "cannot remove a bundle"),
    }
}

/// The last lines of a shim's log, for the engine's own when something failed.
pub fn log_tail(bundle: &Path) -> String {
    const LINES: usize = 20;
    let text = std::fs::read(bundle.join("shim.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(8 << 10)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
