//! Fills new volumes with what the image has at their place: content, owner and mode.
//!
//! The engine touches no file of an image or of a volume: a process of the shim's program does, which ends with it. Source:
//! moby `daemon/create_unix.go`, `populateVolumes`.

use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use image::{Image, failpoint};
use proto::control::{CopyUp, CopyUpRequest};
use proto::{ErrorKind, Status};

use super::Mounting;
use crate::container::mount_point::MountPoint;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::volume::Volume;

/// Fills those volumes of a container that are empty. When: in a thread that may wait.
///
/// # Errors
/// 500 when the image has a file at a volume's place, or when copying fails.
pub(super) fn fill(engine: &Engine, image: &Image, mounting: &Mounting<'_>) -> ApiResult<()> {
    for point in mounting.points.values().filter(|point| point.copy) {
        let lease = mounting.leases.iter().find(|lease| lease.0.name == point.name);
        // Others may be making containers with the same volume: the first one fills it.
        if let Some(lease) = lease {
            let volume = &lease.0;
            let _one_at_a_time = crate::container::lock(&volume.copying);
            fill_one(engine, image, volume, point)?;
        }
    }
    Ok(())
}

fn fill_one(engine: &Engine, image: &Image, volume: &Volume, point: &MountPoint) -> ApiResult<()> {
    let broken_off = volume.is_half_copied();
    let _mounted = volume.mount_for_copy()?;
    let data = volume.data();
    if !broken_off && !is_empty(&data).map_err(|error| failed(&error))? {
        return Ok(());
    }
    volume.note_copying(true)?;
    failpoint::reach("volume.copying");
    let layers = engine.images.layer_files(image).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
    let copy = CopyUp { path: point.destination.clone(), into: data, again: broken_off };
    let outcome = run(engine, &CopyUpRequest { layers, copy })?;
    outcome.map_err(|status| match status.kind {
        ErrorKind::InvalidArgument => ApiError::internal(format!(
            "cannot mount volume over existing file, file exists {}",
            point.destination.display()
        )),
        kind => ApiError::new(
            kind,
            format!("cannot copy the image's {} into volume {}: {status}", point.destination.display(), volume.name),
        ),
    })?;
    volume.note_copying(false)
}

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(folder)?.next().is_none())
}

fn failed(error: &io::Error) -> ApiError {
    ApiError::caused("cannot copy the image's content into a volume", error)
}

/// Has the shim's program do it, in an empty folder that takes its mount points.
fn run(engine: &Engine, request: &CopyUpRequest) -> ApiResult<Result<(), Status>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = engine.operations_dir().join(format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| failed(&error))?;
    let output = converse(engine, request, &folder);
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        tracing::warn!(folder = %folder.display(), %error, "cannot remove an operation's folder");
    }
    let output = output.map_err(|error| failed(&error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let last = said.lines().next_back().unwrap_or_default();
        ApiError::internal(format!("copying into a volume ended with {}: {last}", output.status))
    })
}

fn converse(engine: &Engine, request: &CopyUpRequest, folder: &Path) -> io::Result<std::process::Output> {
    let mut command = Command::new(&engine.settings.shim);
    command.arg("copy-up").current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // What it says explains why it did not read.
        let _ = input.write_all(&serde_json::to_vec(request)?);
    }
    child.wait_with_output()
}
