//! Where the guest has what a container is made of, in its own tmpfs.
//!
//! ```text
//! /run/bulkhead/{layers,scratch,rootfs}      of a VM's one container, made before the freeze point
//!              /N/{layers,scratch,rootfs}    of one of a pod's, made and removed with it
//!              /files  /shares/N  /shm       what their specifications mount
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Everything of the guest's containers lies below it.
pub const RUN: &str = "/run/bulkhead";
/// Where `/etc/hosts` and its like are written for containers to mount.
pub const FILES: &str = "/run/bulkhead/files";
/// The root of a VM's one container.
pub const MERGED: &str = "/run/bulkhead/rootfs";
/// The changes of a VM's one container.
pub const UPPER: &str = "/run/bulkhead/scratch/upper";
/// Where the container crate keeps its state, of each container by its name.
pub const STATE: &str = "/run/bulkhead/state";
/// What must exist before the freeze point, so that no fork makes it.
pub const FOLDERS: [&str; 5] = [FILES, "/run/bulkhead/layers", "/run/bulkhead/scratch", MERGED, STATE];

/// The places of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// For its layers, one by one.
    pub staging: PathBuf,
    /// For its scratch disk.
    pub scratch: PathBuf,
    /// Its root.
    pub merged: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its own folder; a VM's one container has none.
    own: Option<PathBuf>,
}

impl Places {
    /// Those of the container with this number.
    pub fn of(number: u32) -> Self {
        let own = (number > 0).then(|| Path::new(RUN).join(number.to_string()));
        let folder = own.as_deref().unwrap_or(Path::new(RUN));
        let cgroup = if number > 0 { format!("/pod/{number}") } else { "/container".to_owned() };
        Self {
            staging: folder.join("layers"),
            scratch: folder.join("scratch"),
            merged: folder.join("rootfs"),
            cgroup: cgroup.into(),
            own,
        }
    }

    /// Its changes, on the scratch disk.
    pub fn upper(&self) -> PathBuf {
        self.scratch.join("upper")
    }

    /// Makes them, where they are not there since the freeze point.
    ///
    /// # Errors
    /// Which one, and why.
    pub fn make(&self) -> Result<(), (PathBuf, io::Error)> {
        if self.own.is_none() {
            return Ok(());
        }
        let folders = [&self.staging, &self.scratch, &self.merged];
        folders.into_iter().try_for_each(|path| fs::create_dir_all(path).map_err(|error| (path.clone(), error)))
    }

    /// Removes them. When: nothing is mounted there any more.
    pub fn remove(&self) {
        let Some(own) = &self.own else { return };
        let files = Path::new(FILES).join(own.file_name().unwrap_or_default());
        if files.exists()
            && let Err(error) = fs::remove_dir_all(&files)
        {
            tracing::warn!("cannot remove {}: {error}", files.display());
        }
        let inner = [&self.staging, &self.scratch, &self.merged].into_iter().chain([own]);
        // Not all at once: what is mounted after all stays as it is.
        for folder in inner.filter(|folder| folder.exists()) {
            if let Err(error) = fs::remove_dir(folder) {
                tracing::warn!("cannot remove {}: {error}", folder.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_containers_have_places_of_their_own() {
        let (alone, one, two) = (Places::of(0), Places::of(1), Places::of(2));
        assert_eq!((alone.merged.as_path(), alone.upper().as_path()), (Path::new(MERGED), Path::new(UPPER)));
        assert!(FOLDERS.iter().any(|made| Path::new(made) == alone.staging));
        for other in [&alone, &two] {
            assert!(one.merged != other.merged && one.scratch != other.scratch && one.cgroup != other.cgroup);
        }
    }
}
