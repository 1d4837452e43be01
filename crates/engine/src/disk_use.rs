//! How much room files and folders take.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that files and folders take on the disk, holes left out, hard links counted once per name. What vanishes
/// while it is measured takes nothing.
#[must_use]
pub fn disk_bytes(paths: &[PathBuf]) -> u64 {
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
