//! How much is in folders.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Length of everything below a folder but the folders, in bytes; of what has several names, once. Links are not followed, what
/// vanishes while it is measured counts as nothing. Source: moby, daemon/internal/directory, `calcSize`.
#[must_use]
pub fn content_bytes(folder: &Path) -> u64 {
    let mut waiting = children(folder);
    let mut seen = HashSet::new();
    let mut bytes = 0;
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            waiting.extend(children(&path));
        } else if metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino())) {
            bytes += metadata.len();
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
    fn a_tree_is_counted_once_and_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("deep")).unwrap();
        std::fs::write(path("deep/file"), "12345").unwrap();
        std::fs::hard_link(path("deep/file"), path("again")).unwrap();
        std::os::unix::fs::symlink("/usr", path("link")).unwrap();
        assert_eq!(content_bytes(dir.path()), 5 + 4);
        assert_eq!(content_bytes(&path("none")), 0);
    }
}
