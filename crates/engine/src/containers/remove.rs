//! `DELETE /containers/{id}`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use image::ImageUse;
use proto::Digest;

use super::kill::Sender;
use super::{links, shim, stop};
use crate::container::Container;
use crate::container::record::{FILE_NAME, Phase};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;
use crate::version::ApiVersion;
use crate::volumes;

/// How long a removal waits for an operation on the container's files, which may be ending just now.
const COPYING: Duration = Duration::from_secs(10);

/// Removes a container.
///
/// # Errors
/// 404; 409 when it runs and is not to be killed.
pub async fn remove(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    Extension(version): Extension<ApiVersion>,
    query: Query,
) -> ApiResult<StatusCode> {
    if query.flag("link") {
        links::remove(&engine, &id).await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    let container = engine.containers.find(&id)?;
    let wanted = Removal { force: query.flag("force"), volumes: query.flag("v"), version };
    tokio::spawn(async move { take_down(&engine, &container, wanted).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /containers/{id}/{alias}?link=1`: removes a link, not the container that it leads to.
///
/// # Errors
/// 404; 400 for a link that is none.
pub async fn remove_link(
    State(engine): State<Arc<Engine>>,
    Path((id, alias)): Path<(String, String)>,
    query: Query,
) -> ApiResult<StatusCode> {
    if !query.flag("link") {
        return Err(ApiError::not_found(format!("No such container: {id}/{alias}")));
    }
    links::remove(&engine, &format!("{id}/{alias}")).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How a client wants a container removed.
#[derive(Clone, Copy)]
pub struct Removal {
    /// Even if it runs.
    pub force: bool,
    /// With its volumes without names.
    pub volumes: bool,
    /// The client's.
    pub version: ApiVersion,
}

/// Removes a container.
///
/// # Errors
/// As [`remove`].
pub async fn take_down(engine: &Arc<Engine>, container: &Arc<Container>, wanted: Removal) -> ApiResult<()> {
    let Removal { force, volumes, version } = wanted;
    loop {
        let lifecycle = container.hold().await?;
        let phase = container.record().phase.clone();
        if matches!(phase, Phase::Created { .. } | Phase::Exited(_)) || force && matches!(phase, Phase::Restarting(_)) {
            return if volumes {
                discard_with_volumes(engine, container).await
            } else {
                discard(engine, container).await
            };
        }
        if !force {
            return Err(refusal(container, &phase, version));
        }
        drop(lifecycle);
        stop::force(engine, container, Sender::Client)
            .await
            .map_err(|error| error.context(format!("cannot remove container {}", container.id)))?;
        // With `--rm` it removes itself.
        if container.record().host_flag("AutoRemove") {
            let mut progress = container.progress();
            let gone = progress.wait_for(|progress| progress.removed);
            if tokio::time::timeout(stop::KILLED, gone).await.is_ok() {
                return Ok(());
            }
        }
    }
}

/// Why a container that is in use stays. Clients look for the words of their own time.
fn refusal(container: &Container, phase: &Phase, version: ApiVersion) -> ApiError {
    let state = phase.word();
    if version < ApiVersion::new(1, 42) {
        let advice = if phase.is_paused() { "Unpause and then stop" } else { "Stop" };
        return ApiError::conflict(format!(
            "You cannot remove a {state} container {}. {advice} the container before attempting removal or force remove",
            container.id
        ));
    }
    let advice = if phase.is_paused() {
        "container is paused and must be unpaused first".to_owned()
    } else {
        format!("container is {state}: stop the container before removing or force remove")
    };
    ApiError::conflict(format!("cannot remove container {:?}: {advice}", format!("/{}", container.name())))
}

/// Removes a container that does not run, with everything that is kept of it.
///
/// When: its lifecycle is held.
///
/// # Errors
/// 409 when its files are being copied, and that does not end; 500 when its files cannot be removed; it is still there then, and may be removed again.
pub async fn discard(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    // Whoever copies files has the changes mounted, or a utility VM on the disk.
    let Ok(_files) = tokio::time::timeout(COPYING, container.files.write()).await else {
        return Err(ApiError::conflict(format!("container {} is in use: its files are being copied", container.id)));
    };
    if engine.bundle(&container.id).exists() {
        shim::delete_leftovers(engine, &container.id).await;
    }
    let dir = container.dir.clone();
    let removed = tokio::task::spawn_blocking(move || {
        // The record first: a folder without one is cleared away by the next engine, should this one not come to its end.
        image::failpoint::reach("rm.begin");
        gone(std::fs::remove_file(dir.join(FILE_NAME)))?;
        image::failpoint::reach("rm.record-gone");
        gone(std::fs::remove_dir_all(dir))?;
        image::failpoint::reach("rm.folder-gone");
        Ok::<_, io::Error>(())
    });
    removed.await?.map_err(|error| ApiError::caused("cannot remove the container's files", &error))?;
    engine.containers.remove(container);
    container.emit(&engine.events, "destroy", &[]);
    container.streams.end_run().await;
    container.tell(|progress| {
        progress.removed = true;
        progress.running = false;
    });
    collect_image(engine);
    Ok(())
}

/// As [`discard`], and then the container's volumes without names, unless others use them.
///
/// # Errors
/// As [`discard`].
pub async fn discard_with_volumes(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    let mounts = container.record().mounts.clone();
    discard(engine, container).await?;
    let engine = Arc::clone(engine);
    tokio::task::spawn_blocking(move || volumes::discard_anonymous(&engine, &mounts)).await?;
    Ok(())
}

/// What is not there is none to remove.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// An image that was removed by force while this container used it can go now.
pub fn collect_image(engine: &Arc<Engine>) {
    let engine = Arc::clone(engine);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = engine.images.collect(&|id| uses_of(&engine, id)) {
            tracing::warn!("cannot remove an image that nobody uses any more: {}", chain(&error));
        }
    });
}

/// The containers that were made from an image.
pub fn uses_of(engine: &Engine, image: &Digest) -> Vec<ImageUse> {
    let all = engine.containers.all();
    let made_from = all.iter().filter(|container| container.record().image_id == *image);
    made_from
        .map(|container| ImageUse {
            container: container.id.to_string(),
            running: container.record().phase.is_running(),
        })
        .collect()
}
