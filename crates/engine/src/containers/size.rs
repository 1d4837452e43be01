//! How much disk a container takes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use proto::Isolation;

use super::create::{SCRATCH, UPPER_DISK};
use crate::container::{Container, kept};
use crate::engine::Engine;

/// Bytes of a block in `stat`'s count of blocks.
const BLOCK: u64 = 512;

/// What the container's changes take on disk, in bytes; what cannot be read counts as nothing.
pub async fn writable_bytes(container: &Arc<Container>) -> u64 {
    let container = Arc::clone(container);
    tokio::task::spawn_blocking(move || match container.isolation {
        Isolation::Process => {
            disk_bytes(&kept(&container.dir, UPPER_DISK)).unwrap_or_else(|| tree_bytes(&kept(&container.dir, "upper")))
        }
        Isolation::Hyperv => disk_bytes(&kept(&container.dir, SCRATCH)).unwrap_or(0),
    })
    .await
    .unwrap_or(0)
}

/// Bytes of the image that the container was made from.
pub fn image_bytes(engine: &Engine, container: &Container) -> u64 {
    let id = container.record().image_id.clone();
    engine.images.image(&id).map_or(0, |image| image.size_bytes)
}

fn disk_bytes(file: &Path) -> Option<u64> {
    file.metadata().ok().map(|file| file.blocks() * BLOCK)
}

/// Length of all regular files below a folder.
fn tree_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => tree_bytes(&entry.path()),
            Ok(metadata) if metadata.is_file() => metadata.len(),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/f"), "12345").unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        assert_eq!(tree_bytes(dir.path()), 5);
        assert_eq!(tree_bytes(&dir.path().join("none")), 0);
    }
}
