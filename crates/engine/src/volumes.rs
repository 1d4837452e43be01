//! Volumes: folders of the engine that outlive containers. Every endpoint below `/volumes`, and what containers do with them.

mod endpoints;
mod prune;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use image::failpoint;

use crate::container::Container;
use crate::container::mount_point::{MountKind, MountPoint};
use crate::disk_use::content_bytes;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::volume::Volume;

/// The routes of this module.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/volumes", get(endpoints::list))
        .route("/volumes/create", post(endpoints::create))
        .route("/volumes/prune", post(prune::prune))
        .route("/volumes/{name}", get(endpoints::inspect).delete(endpoints::remove))
}

/// Tells everybody that something happened to a volume.
pub fn emit(engine: &Engine, action: &str, name: &str, extra: &[(&str, String)]) {
    let mut attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
    attributes.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    engine.events.publish("volume", action, name, attributes);
}

/// The ids of the containers that have a volume.
#[must_use]
pub fn users(engine: &Engine, name: &str) -> Vec<String> {
    let has = |container: &&Arc<Container>| volumes_of(&container.record().mounts).any(|point| point.name == name);
    engine.containers.all().iter().filter(has).map(|container| container.id.to_string()).collect()
}

fn volumes_of(mounts: &[MountPoint]) -> impl Iterator<Item = &MountPoint> {
    mounts.iter().filter(|point| point.kind == MountKind::Volume)
}

/// Removes a volume that nobody uses.
///
/// # Errors
/// As [`VolumeStore::remove`].
pub fn discard(engine: &Engine, name: &str) -> ApiResult<()> {
    engine.volumes.remove(name, |name| users(engine, name))?;
    emit(engine, "destroy", name, &[]);
    Ok(())
}

/// Removes the volumes without names of a container that was removed. Those that others use stay.
pub fn discard_anonymous(engine: &Engine, mounts: &[MountPoint]) {
    for point in volumes_of(mounts).filter(|point| point.anonymous) {
        if let Err(error) = discard(engine, &point.name) {
            tracing::debug!(volume = point.name, %error, "a removed container's volume stays");
        }
        failpoint::reach("rm.volume-gone");
    }
}

/// Has everything be where a container that is about to start mounts it from. When: in a thread that may wait.
///
/// # Errors
/// 404 for a volume that is gone; 500 for what cannot be mounted or made.
pub fn prepare(engine: &Engine, container: &Container, mounts: &[MountPoint]) -> ApiResult<()> {
    for point in mounts {
        match point.kind {
            MountKind::Volume => engine.volumes.find(&point.name)?.mount(&container.id)?,
            MountKind::Bind if point.create_source && !point.source.exists() => {
                std::fs::create_dir_all(&point.source).map_err(|error| {
                    ApiError::caused(
                        format!("error while creating mount source path '{}'", point.source.display()),
                        &error,
                    )
                })?;
            }
            MountKind::Bind | MountKind::Tmpfs => {}
        }
    }
    Ok(())
}

/// Tells that a container has its volumes mounted.
pub fn mounted(engine: &Engine, container: &Container) {
    let mounts = container.record().mounts.clone();
    for point in volumes_of(&mounts) {
        let extra = [
            ("container", container.id.to_string()),
            ("destination", point.destination.display().to_string()),
            ("propagation", point.propagation.clone()),
            ("read/write", point.writable.to_string()),
        ];
        emit(engine, "mount", &point.name, &extra);
    }
}

/// Lets go of what a container that has ended, or did not start, had mounted. When: its lifecycle is held.
pub fn release(engine: &Engine, container: &Container, tell: bool) {
    let mounts = container.record().mounts.clone();
    for point in volumes_of(&mounts) {
        if tell {
            emit(engine, "unmount", &point.name, &[("container", container.id.to_string())]);
        }
        if let Ok(volume) = engine.volumes.find(&point.name) {
            volume.unmount(&container.id);
        }
    }
}

/// Takes up the volumes of the containers that run by their records, before any of them is found to have ended: who uses a
/// volume is kept nowhere else.
pub fn adopt(engine: &Engine, known: &[Arc<Container>]) {
    for container in known.iter().filter(|container| container.record().phase.is_running()) {
        let mounts = container.record().mounts.clone();
        for volume in volumes_of(&mounts).filter_map(|point| engine.volumes.find(&point.name).ok()) {
            volume.adopt(&container.id);
        }
    }
}

/// Lets go of what is mounted for containers of the last engine that do not run any more.
pub fn settle(engine: &Engine) {
    engine.volumes.all().iter().for_each(|volume| volume.settle());
}

/// What `docker system df -v` shows of the volumes. When: in a thread that may wait.
#[must_use]
pub fn usage(engine: &Engine) -> Vec<serde_json::Value> {
    let describe = |volume: &Arc<Volume>| {
        let mut view = volume.view();
        view["UsageData"] = serde_json::json!({ "RefCount": users(engine, &volume.name).len(), "Size": size(volume) });
        view
    };
    engine.volumes.all().iter().map(describe).collect()
}

/// Bytes that a volume's content takes.
fn size(volume: &Volume) -> u64 {
    content_bytes(&volume.data())
}
