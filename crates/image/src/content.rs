//! Layer files below the store's folder, and the temporary files that become them.
//!
//! ```text
//! <root>/lock                one process at a time
//! <root>/images.redb         records; what is not recorded does not exist
//! <root>/layers/<hex>.erofs  converted layers, named by their diffID
//! <root>/tmp/                work in progress; emptied when the store is opened
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use proto::{Digest, ErrorKind};

use crate::convert::layer_uuid;
use crate::erofs::{SuperblockFault, read_superblock};
use crate::failpoint;
use crate::seal::seal;

/// A file operation of the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }

    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
                ErrorKind::ResourceExhausted
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        }
    }
}

/// Why a recorded layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerFault {
    /// It cannot be read.
    #[error("the file cannot be read")]
    Unreadable(#[source] io::Error),
    /// It is not what was written.
    #[error(transparent)]
    Damaged(SuperblockFault),
    /// Its bytes are not those that were written.
    #[error("the file's content is not what was written")]
    Altered,
    /// A check of the store found it so.
    #[error("a check found the file damaged")]
    Marked,
}

/// The folders of the store.
pub(crate) struct ContentStore {
    layers: PathBuf,
    temporary: PathBuf,
    next: AtomicU64,
}

impl ContentStore {
    /// Makes the folders and empties the temporary one. When: the store's lock is held.
    pub fn open(root: &Path) -> Result<Self, FileError> {
        let (layers, temporary) = (root.join("layers"), root.join("tmp"));
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(FileError::new("empty", &temporary))?;
        }
        for folder in [&layers, &temporary] {
            // Layers may hold set-id files of other users' making: nobody else reaches them (CVE-2024-25621).
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(FileError::new("create", folder))?;
        }
        Ok(Self { layers, temporary, next: AtomicU64::new(0) })
    }

    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{}.erofs", diff_id.hex()))
    }

    /// An empty temporary file, removed on drop unless it becomes a layer.
    pub fn stage(&self) -> Result<(File, Staged), FileError> {
        let path = self.temporary.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(FileError::new("create", &path))?;
        Ok((file, Staged { path }))
    }

    /// A temporary file that has no name already.
    pub fn anonymous(&self) -> Result<File, FileError> {
        self.stage().map(|(file, _)| file)
    }

    /// Turns a staged file, already on the disk, into a layer. When: [`ContentStore::sync_layers`] follows.
    pub fn keep(&self, staged: Staged, diff_id: &Digest) -> Result<(), FileError> {
        let path = self.layer_path(diff_id);
        fs::rename(&staged.path, &path).map_err(FileError::new("create", &path))?;
        std::mem::forget(staged);
        failpoint::reach("commit.kept-one");
        Ok(())
    }

    /// Puts the names of layers on the disk.
    pub fn sync_layers(&self) -> Result<(), FileError> {
        File::open(&self.layers).and_then(|folder| folder.sync_all()).map_err(FileError::new("sync", &self.layers))
    }

    /// Removes a layer's file; one that is gone is well.
    pub fn discard(&self, diff_id: &Digest) -> Result<(), FileError> {
        let path = self.layer_path(diff_id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", &path)(error)),
            _ => {
                failpoint::reach("remove.file-gone");
                Ok(())
            }
        }
    }

    /// Files in the layers' folder for which `recorded` is false: a crash left them before they were recorded, or after they
    /// were no longer.
    pub fn find_unrecorded(&self, recorded: impl Fn(&Digest) -> bool) -> Result<Vec<PathBuf>, FileError> {
        let list = fs::read_dir(&self.layers).map_err(FileError::new("list", &self.layers))?;
        let mut unrecorded = Vec::new();
        for entry in list {
            let entry = entry.map_err(FileError::new("list", &self.layers))?;
            let name = entry.file_name();
            let diff_id = name.to_str().and_then(|name| name.strip_suffix(".erofs"));
            let diff_id = diff_id.and_then(|hex| format!("sha256:{hex}").parse().ok());
            if !diff_id.is_some_and(|diff_id| recorded(&diff_id)) {
                unrecorded.push(entry.path());
            }
        }
        Ok(unrecorded)
    }

    /// Removes a file that [`ContentStore::find_unrecorded`] found.
    pub fn discard_unrecorded(path: &Path) -> Result<(), FileError> {
        tracing::info!(file = %path.display(), "removing a layer that no record knows");
        let metadata = path.symlink_metadata().map_err(FileError::new("look at", path))?;
        if metadata.is_dir() {
            fs::remove_dir_all(path).map_err(FileError::new("remove", path))?;
        } else {
            fs::remove_file(path).map_err(FileError::new("remove", path))?;
        }
        failpoint::reach("open.orphan-removed");
        Ok(())
    }

    /// Reads a layer's whole file: true if it has this digest.
    pub fn has_seal(&self, diff_id: &Digest, expected: &Digest) -> Result<bool, LayerFault> {
        let read = || File::open(self.layer_path(diff_id)).and_then(|file| seal(&file));
        Ok(read().map_err(LayerFault::Unreadable)? == *expected)
    }

    /// Checks that a layer's file is there, of the right length, and begins as it was written.
    pub fn check_layer(&self, diff_id: &Digest, bytes: u64) -> Result<(), LayerFault> {
        let read = || -> io::Result<(u64, [u8; 4096])> {
            let file = File::open(self.layer_path(diff_id))?;
            let mut block = [0; 4096];
            file.read_exact_at(&mut block, 0)?;
            Ok((file.metadata()?.len(), block))
        };
        let (length, block) = read().map_err(LayerFault::Unreadable)?;
        if length != bytes {
            return Err(LayerFault::Damaged(SuperblockFault::Length));
        }
        read_superblock(&block, layer_uuid(diff_id), bytes).map_err(LayerFault::Damaged)
    }
}

/// A temporary file; removed on drop.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary file");
        }
    }
}
