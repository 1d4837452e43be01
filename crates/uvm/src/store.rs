//! The template store: one folder per template, named by the digest of everything it depends on.
//!
//! ```text
//! STORE/<template id>/{memory,state,manifest.json,seal.json}   files 0400, put in place by one rename
//!      /<template id>/working-set.json   what its forks write first, once that is known
//!      /.lock-<template id>     flock: who builds or removes this template
//!      /.build-<template id>    a template being built; a stale one is removed by the next builder
//!      /.removed-<template id>  a template being removed
//!      /.qemu.json /.kvm.json   what was found out about this host
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::control::TemplateSummary;
use proto::{ErrorKind, TemplateId};
use rustix::fs::{FlockOperation, flock};

use crate::guest_image::GuestImageError;
use crate::hypervisor::HypervisorError;
use crate::template::{Damage, Manifest, Template};

/// How long a start waits for another one that builds the same template.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What went wrong with a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of the store failed.
    #[error("cannot {action} {}", .path.display())]
    Store {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such template.
    #[error("no template {0}")]
    NotFound(TemplateId),
    /// Somebody else has built or removed this template for too long.
    #[error("another process has held template {id} for more than {} s", LOCK_LIMIT.as_secs())]
    Busy {
        /// Which template.
        id: TemplateId,
    },
    /// The guest did not get to the freeze point.
    #[error("the guest did not start: {detail}")]
    Boot {
        /// What happened, and what the guest printed last.
        detail: String,
    },
    /// The guest image is unfit.
    #[error(transparent)]
    Image(#[from] GuestImageError),
    /// The hypervisor failed.
    #[error("cannot make the template")]
    Hypervisor(#[from] HypervisorError),
}

impl TemplateError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::ResourceExhausted,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
                _ => ErrorKind::Internal,
            },
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Busy { .. } => ErrorKind::Unavailable,
            Self::Boot { .. } => ErrorKind::FailedPrecondition,
            Self::Image(image) => image.kind(),
            Self::Hypervisor(hypervisor) => hypervisor.kind(),
        }
    }

    pub(crate) fn store(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Store { action, path, source }
    }
}

/// What is found under a template's id.
#[derive(Debug)]
pub(crate) enum Found {
    Sound(Template),
    Damaged(Damage),
    Missing,
}

/// The folder of templates. Several processes may use one at the same time.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    folder: PathBuf,
}

impl TemplateStore {
    /// Opens the store, making its folder (0700) if needed.
    ///
    /// # Errors
    /// [`TemplateError::Store`] when it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, TemplateError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(TemplateError::store("make the template store", folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Every template, oldest first; `current` is the one that a start with today's configuration uses.
    ///
    /// # Errors
    /// [`TemplateError::Store`] when the folder cannot be read. A damaged template is left out, with a warning.
    pub fn list(&self, current: Option<&TemplateId>) -> Result<Vec<TemplateSummary>, TemplateError> {
        let mut summaries = Vec::new();
        for id in self.ids()? {
            match Manifest::read(&self.path(&id)) {
                Ok(manifest) => summaries.push(self.summary(&id, &manifest, current)),
                Err(error) => tracing::warn!(%id, %error, "a template without a sound manifest"),
            }
        }
        summaries.sort_by_key(|summary| summary.created_at_ns);
        Ok(summaries)
    }

    /// Removes a template. When: forks of it may run: they keep what they have mapped. Waits while it is being built.
    ///
    /// # Errors
    /// [`TemplateError::NotFound`], [`TemplateError::Busy`] or [`TemplateError::Store`].
    pub async fn remove(&self, id: &TemplateId) -> Result<(), TemplateError> {
        let lock = self.lock(id).await?;
        if !self.path(id).exists() {
            lock.forget()?;
            return Err(TemplateError::NotFound(id.clone()));
        }
        self.discard(id)?;
        lock.forget()
    }

    /// Removes every template but the one to keep, and what dead builders left. Returns the identifiers removed.
    ///
    /// # Errors
    /// As [`TemplateStore::remove`].
    pub async fn prune(&self, keep: Option<&TemplateId>) -> Result<Vec<TemplateId>, TemplateError> {
        let mut removed = Vec::new();
        for id in self.ids()? {
            if Some(&id) != keep {
                match self.remove(&id).await {
                    Ok(()) => removed.push(id),
                    // Somebody else was quicker.
                    Err(TemplateError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for path in self.entries()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let id = [".build-", ".removed-"].iter().find_map(|prefix| name.strip_prefix(prefix));
            if let Some(Ok(id)) = id.map(str::parse::<TemplateId>)
                && let Ok(Some(_lock)) = self.try_lock(&id)
            {
                fs::remove_dir_all(&path).map_err(TemplateError::store("remove", &path))?;
            }
        }
        Ok(removed)
    }

    /// Opens the template and checks it.
    pub(crate) fn find(&self, id: &TemplateId) -> Result<Found, TemplateError> {
        let folder = self.path(id);
        match Template::open(&folder, id) {
            Ok(template) => Ok(Found::Sound(template)),
            Err(Damage::Io(error)) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(Found::Missing),
            Err(damage) => Ok(Found::Damaged(damage)),
        }
    }

    /// Takes the lock under which a template is built or removed.
    pub(crate) async fn lock(&self, id: &TemplateId) -> Result<TemplateLock, TemplateError> {
        let began = Instant::now();
        loop {
            if let Some(lock) = self.try_lock(id)? {
                return Ok(lock);
            }
            if began.elapsed() > LOCK_LIMIT {
                return Err(TemplateError::Busy { id: id.clone() });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn try_lock(&self, id: &TemplateId) -> Result<Option<TemplateLock>, TemplateError> {
        let path = self.folder.join(format!(".lock-{id}"));
        let open = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = open.map_err(TemplateError::store("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(TemplateError::store("lock", &path)(error.into())),
        }
        // A remover unlinks the lock file while it holds it: then this is the lock of nothing.
        let same = |found: fs::Metadata, ours: fs::Metadata| (found.dev(), found.ino()) == (ours.dev(), ours.ino());
        let current = fs::metadata(&path).and_then(|found| Ok(same(found, file.metadata()?))).unwrap_or(false);
        Ok(current.then_some(TemplateLock { path, _file: file }))
    }

    /// Makes the empty folder in which the holder of the lock builds the template.
    pub(crate) fn begin_build(&self, id: &TemplateId) -> Result<PathBuf, TemplateError> {
        let path = self.folder.join(format!(".build-{id}"));
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(%id, "removed what a dead builder of this template left"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TemplateError::store("remove", &path)(error)),
        }
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(TemplateError::store("make", &path))?;
        Ok(path)
    }

    /// Puts a complete build in place.
    pub(crate) fn commit_build(&self, build: &Path, id: &TemplateId) -> Result<(), TemplateError> {
        let place = self.path(id);
        fs::rename(build, &place).map_err(TemplateError::store("put in place", &place))?;
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(TemplateError::store("sync", &self.folder))
    }

    /// Removes a template's folder. When: its lock is held.
    pub(crate) fn discard(&self, id: &TemplateId) -> Result<(), TemplateError> {
        let place = self.path(id);
        let aside = self.folder.join(format!(".removed-{id}"));
        match fs::remove_dir_all(&aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TemplateError::store("remove", &aside)(error)),
        }
        fs::rename(&place, &aside).map_err(TemplateError::store("remove", &place))?;
        fs::remove_dir_all(&aside).map_err(TemplateError::store("remove", &aside))
    }

    /// Where a finding about this host is kept.
    pub(crate) fn cache(&self, name: &str) -> PathBuf {
        self.folder.join(format!(".{name}.json"))
    }

    pub(crate) fn path(&self, id: &TemplateId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    pub(crate) fn summary(
        &self,
        id: &TemplateId,
        manifest: &Manifest,
        current: Option<&TemplateId>,
    ) -> TemplateSummary {
        TemplateSummary {
            id: id.clone(),
            created_at_ns: manifest.created_at_ns,
            accelerator: manifest.accelerator,
            kernel: manifest.kernel_version.clone(),
            memory_bytes: manifest.memory_bytes,
            vcpus: manifest.vcpus,
            disk_bytes: disk_bytes(&self.path(id)),
            boot_ms: manifest.boot_ms,
            current: current == Some(id),
        }
    }

    fn entries(&self) -> Result<Vec<PathBuf>, TemplateError> {
        let read = || fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
        read().map_err(TemplateError::store("read", &self.folder))
    }

    fn ids(&self) -> Result<Vec<TemplateId>, TemplateError> {
        let name = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
        Ok(self.entries()?.iter().filter_map(name).collect())
    }
}

/// The right to build or remove one template, until dropped.
#[derive(Debug)]
pub(crate) struct TemplateLock {
    path: PathBuf,
    _file: File,
}

impl TemplateLock {
    /// Gives the right up together with its file, since the template is gone.
    fn forget(self) -> Result<(), TemplateError> {
        fs::remove_file(&self.path).map_err(TemplateError::store("remove", &self.path))
    }
}

fn disk_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> TemplateId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn plant(store: &TemplateStore, id: &TemplateId, created_at_ns: i64) {
        let build = store.begin_build(id).unwrap();
        fs::write(build.join("memory"), vec![1; 8192]).unwrap();
        fs::write(build.join("state"), b"state").unwrap();
        let mut manifest = crate::template::tests::manifest(id);
        manifest.created_at_ns = created_at_ns;
        crate::template::seal(&build, &manifest).unwrap();
        store.commit_build(&build, id).unwrap();
    }

    #[tokio::test]
    async fn templates_are_listed_removed_and_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let store = TemplateStore::open(&folder.path().join("a/b")).unwrap();
        for (digit, created) in [('a', 3), ('b', 1), ('c', 2)] {
            plant(&store, &id(digit), created);
        }
        let listed = store.list(Some(&id('b'))).unwrap();
        let order: Vec<_> =
            listed.iter().map(|summary| (summary.id.as_str().chars().next().unwrap(), summary.current)).collect();
        assert_eq!(order, [('b', true), ('c', false), ('a', false)]);
        assert!(listed[0].disk_bytes >= 8192);

        store.remove(&id('c')).await.unwrap();
        assert_eq!(store.remove(&id('c')).await.unwrap_err().kind(), ErrorKind::NotFound);
        store.begin_build(&id('d')).unwrap();
        assert_eq!(store.prune(Some(&id('b'))).await.unwrap(), [id('a')]);
        let left: Vec<_> = store.list(None).unwrap().into_iter().map(|summary| summary.id).collect();
        assert_eq!(left, [id('b')]);
        assert!(!folder.path().join("a/b").join(format!(".build-{}", id('d'))).exists());
    }

    #[tokio::test]
    async fn one_at_a_time_holds_a_lock_and_a_removed_lock_file_locks_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = TemplateStore::open(folder.path()).unwrap();
        let lock = store.lock(&id('a')).await.unwrap();
        assert!(store.try_lock(&id('a')).unwrap().is_none());
        assert!(store.try_lock(&id('b')).unwrap().is_some());
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.lock(&id('a')).await.map(|_| ()) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        lock.forget().unwrap();
        waiting.await.unwrap().unwrap();
    }

    #[test]
    fn a_store_that_cannot_be_made_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = TemplateStore::open(&file.join("store")).unwrap_err();
        assert!(error.to_string().contains("file/store"), "{error}");
    }
}
