//! `GET /system/df`: what is stored, in bytes that it takes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::images;
use crate::query::Query;

/// Images, containers and their changes, or those that `type` names. There are neither volumes nor build caches yet.
pub(super) async fn usage(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let wanted: Vec<String> = query.all("type").map(str::to_owned).collect();
    if let Some(unknown) = wanted.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        return Err(ApiError::invalid(format!("unknown object type: {unknown}")));
    }
    let measured = tokio::task::spawn_blocking(move || {
        let wants = |kind: &str| wanted.is_empty() || wanted.iter().any(|one| one == kind);
        let mut usage = json!({});
        if wants("image") {
            usage["LayersSize"] = json!(engine.images.layers_bytes());
            usage["Images"] = json!(images::entries(&engine));
        }
        if wants("container") {
            usage["Containers"] = json!(containers(&engine));
        }
        if wants("volume") {
            usage["Volumes"] = json!([]);
        }
        if wants("build-cache") {
            usage["BuildCache"] = json!([]);
            usage["BuilderSize"] = json!(0);
        }
        usage
    });
    Ok(Json(measured.await?))
}

/// What `type` may name. Source: Docker Engine API v1.42, "Get data usage information".
const KINDS: [&str; 4] = ["container", "image", "volume", "build-cache"];

fn containers(engine: &Engine) -> Vec<Value> {
    let describe = |container: &Arc<crate::container::Container>| {
        let record = container.record().clone();
        let folder = engine.containers_dir().join(record.id.as_str());
        let image_bytes = engine.images.image(&record.image_id).map_or(0, |image| image.size_bytes);
        let own = disk_bytes(&[folder.join("upper"), folder.join("scratch.img")]);
        json!({
            "Id": record.id,
            "Names": [format!("/{}", record.name)],
            "Image": record.image,
            "ImageID": record.image_id,
            "Command": record.command().join(" "),
            "Created": record.created.seconds(),
            "State": record.phase.word(),
            "Status": record.phase.word(),
            "SizeRw": own,
            "SizeRootFs": own + image_bytes,
            "Ports": [],
            "Labels": record.config["Labels"],
            "HostConfig": {"NetworkMode": record.host_text("NetworkMode")},
            "NetworkSettings": {"Networks": {}},
            "Mounts": [],
        })
    };
    engine.containers.all().iter().map(describe).collect()
}

/// Bytes that files and folders take on the disk, holes left out, hard links counted once per name. What vanishes
/// while it is measured takes nothing.
fn disk_bytes(paths: &[PathBuf]) -> u64 {
    let mut waiting = paths.to_vec();
    let mut bytes = 0;
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            waiting.extend(children(&path));
        }
    }
    bytes
}

fn children(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let sparse = std::fs::File::create(folder.path().join("scratch.img")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        std::fs::write(folder.path().join("deep/file"), vec![1; 100_000]).unwrap();
        let bytes = disk_bytes(&[folder.path().to_owned(), folder.path().join("missing")]);
        assert!((100_000..1 << 20).contains(&bytes), "{bytes}");
    }
}
