//! Folders of a snapshotter as EROFS layers, each converted once and kept.
//!
//! A committed snapshot is never written again, so its layer is found by what its folder is: device, inode, time of birth. The
//! conversion reads a stranger's files, and is done by the image crate's jailed worker.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use container::archive::{ArchiveError, Root, pack_layer};
use image::{Converter, LayerError};
use proto::control::LayerFile;
use proto::{Digest, ErrorKind};
use serde::{Deserialize, Serialize};

use super::unnamed::Unnamed;
use crate::bundle::kind_of_file;

/// A layer that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file or folder.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The folder cannot be read.
    #[error("cannot read {}", folder.display())]
    Pack {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// What was read is no layer.
    #[error("cannot convert {}", folder.display())]
    Convert {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: LayerError,
    },
}

impl CacheError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source, .. } => kind_of_file(source),
            Self::Pack { source, .. } => source.kind(),
            Self::Convert { source, .. } => source.kind(),
        }
    }
}

/// An error of the operating system, with what was done to which path.
pub fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError::File { action, path: path.to_owned(), source }
}

/// What is kept of a layer beside its file.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Where it came from.
    folder: PathBuf,
    /// The digest of its tar stream.
    diff_id: Digest,
}

/// Converted layers, in a folder that only root reads. Several shims may use it at a time.
pub struct LayerCache {
    folder: PathBuf,
}

impl LayerCache {
    /// Opens it; the folder is made if it is missing.
    ///
    /// # Errors
    /// [`CacheError::File`].
    pub fn open(folder: PathBuf) -> Result<Self, CacheError> {
        make_folder(&folder)?;
        Ok(Self { folder })
    }

    /// The layer of a committed snapshot.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn layer(&self, source: &Path) -> Result<LayerFile, CacheError> {
        let key = key(source).map_err(at("look at", source))?;
        let at_key = |extension: &str| self.folder.join(format!("{key}.{extension}"));
        let (path, record) = (at_key("erofs"), at_key("json"));
        if let Some(diff_id) = recorded(&path, &record) {
            return Ok(LayerFile { diff_id, path });
        }
        // Whoever comes second waits, and then finds it.
        let lock_path = at_key("lock");
        let lock = File::create(&lock_path).map_err(at("make", &lock_path))?;
        lock.lock().map_err(at("lock", &lock_path))?;
        if let Some(diff_id) = recorded(&path, &record) {
            return Ok(LayerFile { diff_id, path });
        }
        self.forget_the_gone()?;
        let new = at_key("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&new);
        let diff_id = convert(source, &file.map_err(at("make", &new))?, &new).inspect_err(|_| {
            // Rubbish; the error before it is the one to tell.
            let _ = fs::remove_file(&new);
        })?;
        let text = serde_json::to_vec(&Record { folder: source.to_owned(), diff_id: diff_id.clone() });
        let text = text.map_err(|error| at("describe", &record)(error.into()))?;
        fs::write(&record, text).map_err(at("write", &record))?;
        // The last step: without the file the record means nothing.
        fs::rename(&new, &path).map_err(at("rename", &new))?;
        Ok(LayerFile { diff_id, path })
    }

    /// Removes the layers of snapshots that containerd has removed.
    fn forget_the_gone(&self) -> Result<(), CacheError> {
        let entries = fs::read_dir(&self.folder).map_err(at("list", &self.folder))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(key_of_file) = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "json")) else {
                continue;
            };
            let Some(record) = read_record(&path) else { continue };
            if key(&record.folder).is_ok_and(|now| key_of_file == now.as_str()) {
                continue;
            }
            for extension in ["erofs", "json", "lock"] {
                // Somebody else may have done it.
                let _ = fs::remove_file(path.with_extension(extension));
            }
        }
        Ok(())
    }
}

/// Converts a folder that only one container has. Shape: the layer is written to `file`, which is empty.
///
/// # Errors
/// [`CacheError`].
pub fn own_layer(source: &Path, file: &Unnamed) -> Result<LayerFile, CacheError> {
    let diff_id = convert(source, file.file(), &file.path())?;
    Ok(LayerFile { diff_id, path: file.path() })
}

/// Makes a folder for root alone.
///
/// # Errors
/// [`CacheError::File`].
pub fn make_folder(folder: &Path) -> Result<(), CacheError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at("make", folder))
}

/// What a folder is, for as long as it is.
fn key(folder: &Path) -> io::Result<String> {
    let facts = folder.metadata()?;
    // A file system without it has its inode numbers alone.
    let born = facts.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("{:x}-{:x}-{:x}", facts.dev(), facts.ino(), born.as_nanos()))
}

fn recorded(layer: &Path, record: &Path) -> Option<Digest> {
    layer.exists().then(|| read_record(record)).flatten().map(|record| record.diff_id)
}

fn read_record(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Shape: `path` is the output's, for a person.
fn convert(source: &Path, output: &File, path: &Path) -> Result<Digest, CacheError> {
    let root = Root::open(source).map_err(at("open", source))?;
    let (reader, writer) = io::pipe().map_err(at("make a pipe for", path))?;
    let (packed, converted) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| pack_layer(&root, writer));
        let converted = image::convert_layer(Converter::Workers, reader, output);
        let broken = || ArchiveError::Stream(io::Error::other("the thread that reads the folder broke off"));
        (packing.join().unwrap_or_else(|_| Err(broken())), converted)
    });
    match (packed, converted) {
        // The other side only saw the stream break.
        (Err(source_error), _) if !is_broken_pipe(&source_error) => {
            Err(CacheError::Pack { folder: source.to_owned(), source: source_error })
        }
        (_, Err(error)) => Err(CacheError::Convert { folder: source.to_owned(), source: error }),
        (Err(error), Ok(_)) => Err(CacheError::Pack { folder: source.to_owned(), source: error }),
        (Ok(()), Ok(diff_id)) => Ok(diff_id),
    }
}

fn is_broken_pipe(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Stream(source) if source.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_made_anew_is_another() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("fs");
        fs::create_dir(&folder).unwrap();
        let first = key(&folder).unwrap();
        fs::write(folder.join("x"), "content does not count").unwrap();
        assert_eq!(key(&folder).unwrap(), first);
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert_ne!(key(&folder).unwrap(), first);
        assert!(key(&top.path().join("none")).is_err());
    }

    #[test]
    fn layers_of_removed_snapshots_go_and_others_stay() {
        let top = tempfile::tempdir().unwrap();
        let cache = LayerCache::open(top.path().join("layers")).unwrap();
        let (here, gone) = (top.path().join("here"), top.path().join("gone"));
        for folder in [&here, &gone] {
            fs::create_dir(folder).unwrap();
            let key = key(folder).unwrap();
            let record =
                Record { folder: folder.clone(), diff_id: format!("sha256:{}", "0".repeat(64)).parse().unwrap() };
            fs::write(cache.folder.join(format!("{key}.json")), serde_json::to_vec(&record).unwrap()).unwrap();
            fs::write(cache.folder.join(format!("{key}.erofs")), "layer").unwrap();
        }
        let (kept, removed) = (key(&here).unwrap(), key(&gone).unwrap());
        fs::remove_dir(&gone).unwrap();
        cache.forget_the_gone().unwrap();
        assert!(!cache.folder.join(format!("{removed}.erofs")).exists());
        assert_eq!(cache.layer(&here).unwrap().path, cache.folder.join(format!("{kept}.erofs")));
    }
}
