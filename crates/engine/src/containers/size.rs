//! How much disk a container takes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use proto::Isolation;

use super::create::{SCRATCH, UPPER_DISK};
use crate::container::{Container, kept};
use crate::disk_use::content_bytes;
use crate::engine::Engine;

/// Bytes of a block in `stat`'s count of blocks.
const BLOCK: u64 = 512;

/// What the container's changes take on disk, in bytes; what cannot be read counts as nothing.
pub async fn writable_bytes(container: &Arc<Container>) -> u64 {
    let container = Arc::clone(container);
    tokio::task::spawn_blocking(move || writable_bytes_now(&container)).await.unwrap_or(0)
}

/// As [`writable_bytes`], in a thread that may wait.
pub fn writable_bytes_now(container: &Container) -> u64 {
    let disk = |name: &str| disk_bytes(&kept(&container.dir, name));
    match container.isolation {
        Isolation::Process => disk(UPPER_DISK).unwrap_or_else(|| content_bytes(&kept(&container.dir, "upper"))),
        Isolation::Hyperv => disk(SCRATCH).unwrap_or(0),
    }
}

/// Bytes of the image that the container was made from.
pub fn image_bytes(engine: &Engine, container: &Container) -> u64 {
    let id = container.record().image_id.clone();
    engine.images.image(&id).map_or(0, |image| image.size_bytes)
}

fn disk_bytes(file: &Path) -> Option<u64> {
    file.metadata().ok().map(|file| file.blocks() * BLOCK)
}
