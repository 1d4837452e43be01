//! The store of images: one process, one folder.

mod batch;
mod check;
mod lease;
mod pin;
mod remove;
mod sound;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use proto::{Digest, ErrorKind};

pub(crate) use batch::{AddLayerError, Batch, StagedLayer};
pub use check::{CheckReport, Finding, Remedy};
pub use lease::{ImageHold, ImageLease};
pub(crate) use pin::LayerPin;
pub use remove::{ImageUse, RemoveError, Removed};
pub use sound::LayerFilesError;

use crate::config::{self, Image};
use crate::content::{ContentStore, FileError};
use crate::failpoint;
use crate::limits::Limits;
use crate::nothing;
use crate::records::{Change, ImageRecord, LayerRecord, Records, RecordsError};
use crate::reference::Reference;
use crate::worker::Converter;

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the image store is in use by another process (lock file {lock})", lock = lock.display())]
    InUse {
        /// The file that it has locked.
        lock: PathBuf,
    },
    /// A folder or file cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// There are layers, and no records that say whose they are.
    #[error(
        "the image records {records} are gone, though there are layers: bring them back, or move the folder away to begin anew",
        records = records.display()
    )]
    RecordsLost {
        /// The file.
        records: PathBuf,
    },
}

impl OpenError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } => ErrorKind::Unavailable,
            Self::File(error) => error.kind(),
            Self::Records(error) => error.kind(),
            Self::RecordsLost { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

/// The store's own files failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl StoreError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File(error) => error.kind(),
            Self::Records(error) => error.kind(),
        }
    }
}

/// A name or id that leads to no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// None has it. (The words are Docker's; clients look for them.)
    #[error("no such image: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// Several ids begin so.
    #[error("multiple images have an id that begins with {prefix}")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
    },
}

impl ResolveError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Ambiguous { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// A tag that cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// There is no such image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A digest says which image it is; it cannot be given to another.
    #[error("refusing to create a tag with a digest reference")]
    Digest,
    /// The records failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TagError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::Digest => ErrorKind::InvalidArgument,
            Self::Store(error) => error.kind(),
        }
    }
}

/// One line of `docker images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Digest of the configuration.
    pub id: Digest,
    /// Short names with tags, in order; empty for a dangling image.
    pub repo_tags: Vec<String>,
    /// Short names with digests, in order.
    pub repo_digests: Vec<String>,
    /// Seconds since the epoch; 0 if the configuration does not say.
    pub created_unix: i64,
    /// Nanoseconds beyond that second.
    pub created_ns: u32,
    /// Length of all regular files of all layers.
    pub size_bytes: u64,
    /// The configuration's labels.
    pub labels: HashMap<String, String>,
    /// The image that a build step made it from.
    pub parent: Option<Digest>,
    /// Build steps made others from it: without a name it is one of the builds' steps, and not dangling.
    pub has_children: bool,
}

/// One line of `docker history`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The image that the step made, as far as it is known: the newest line's, and those of steps that were built here.
    pub id: Option<Digest>,
    /// Seconds since the epoch; 0 if unknown.
    pub created_unix: i64,
    /// The command that made it.
    pub created_by: String,
    /// A remark.
    pub comment: String,
    /// Length of the layer's regular files; 0 where the step made no layer.
    pub size_bytes: u64,
    /// That image's tags.
    pub tags: Vec<String>,
}

/// Names the host's current run.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is recorded, in memory; the database always holds the same.
#[derive(Default)]
struct Index {
    images: BTreeMap<Digest, Arc<Image>>,
    records: BTreeMap<Digest, ImageRecord>,
    names: BTreeMap<String, Digest>,
    layers: BTreeMap<Digest, LayerRecord>,
    /// Layers that a batch under way builds on, and how many do.
    pins: BTreeMap<Digest, usize>,
    /// Images that somebody reads or is about to use, and how many do (see [`ImageLease`]).
    leases: BTreeMap<Digest, usize>,
}

impl Index {
    fn is_attached(&self, id: &Digest) -> bool {
        self.records.get(id).is_some_and(|record| !record.detached)
    }

    fn attached(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values().filter(|image| self.is_attached(&image.id))
    }

    /// Images that build steps made from this one.
    fn has_children(&self, id: &Digest) -> bool {
        self.records.values().any(|record| !record.detached && record.parent.as_ref() == Some(id))
    }

    fn names_of(&self, id: &Digest) -> Vec<Reference> {
        let of_id = self.names.iter().filter(|(_, named)| *named == id);
        of_id.filter_map(|(name, _)| name.parse().ok()).collect()
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), RecordsError> {
        // Layers first: images take their lengths from them.
        let (layers, rest): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| matches!(change, Change::PutLayer(..)));
        for change in layers.into_iter().chain(rest) {
            match change {
                Change::PutImage(id, record) => {
                    let image = self.read_image(&id, &record)?;
                    self.images.insert(id.clone(), Arc::new(image));
                    self.records.insert(id, record);
                }
                Change::DropImage(id) => {
                    self.images.remove(&id);
                    self.records.remove(&id);
                }
                Change::PutName(name, id) => drop(self.names.insert(name, id)),
                Change::DropName(name) => drop(self.names.remove(&name)),
                Change::PutLayer(id, record) => drop(self.layers.insert(id, record)),
                Change::DropLayer(id) => drop(self.layers.remove(&id)),
            }
        }
        Ok(())
    }

    fn read_image(&self, id: &Digest, record: &ImageRecord) -> Result<Image, RecordsError> {
        let damaged = || RecordsError::Damaged { key: id.to_string() };
        let config_json = record.config.clone().into_bytes();
        let parsed = config::parse_own(&config_json).ok().filter(|parsed| parsed.id == *id).ok_or_else(damaged)?;
        let bytes_of = |diff_id| self.layers.get(diff_id).map(|layer| layer.content_bytes).ok_or_else(damaged);
        let layer_bytes: Vec<u64> = parsed.diff_ids.iter().map(bytes_of).collect::<Result<_, _>>()?;
        Ok(Image {
            id: parsed.id,
            created: parsed.config.created().clone(),
            config: parsed.config,
            config_json,
            diff_ids: parsed.diff_ids,
            size_bytes: layer_bytes.iter().sum(),
            layer_bytes,
        })
    }
}

/// How a text led to an image.
enum Found {
    ByName(Reference, Digest),
    ById(Digest),
}

/// The images of one engine. Shape: `root` belongs to the store alone. When: may be used by many threads; calls that
/// change something wait for each other, but conversions run side by side.
pub struct ImageStore {
    pub(crate) content: ContentStore,
    pub(crate) limits: Limits,
    pub(crate) converter: Converter,
    records: Records,
    index: Mutex<Index>,
    /// Layers that were verified in an earlier one are verified before they are used.
    epoch: u64,
    /// Locked while this lives.
    _lock: File,
}

impl ImageStore {
    /// Opens the store in a folder, which is made if it is missing, and clears away what a crash left behind.
    ///
    /// # Errors
    /// [`OpenError::InUse`]: another process has it open. [`OpenError::File`], [`OpenError::Records`]: its files cannot be used.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::with_limits(root, Limits::default())
    }

    /// As [`ImageStore::open`], with other bounds for what is loaded.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn with_limits(root: &Path, limits: Limits) -> Result<Self, OpenError> {
        // A test's main is not ours to begin.
        Self::with_converter(root, limits, if cfg!(test) { Converter::InProcess } else { Converter::Workers })
    }

    /// As [`ImageStore::with_limits`], with another place where layers are converted.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn with_converter(root: &Path, limits: Limits, converter: Converter) -> Result<Self, OpenError> {
        let boot_id = fs::read_to_string(BOOT_ID).map_err(FileError::new("read", Path::new(BOOT_ID)))?;
        Self::open_in_boot(root, limits, converter, boot_id.trim())
    }

    /// As [`ImageStore::with_converter`], on a host with this boot id.
    fn open_in_boot(root: &Path, limits: Limits, converter: Converter, boot_id: &str) -> Result<Self, OpenError> {
        fs::create_dir_all(root).map_err(FileError::new("create", root))?;
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(FileError::new("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { lock: lock_path }),
            Err(TryLockError::Error(error)) => return Err(FileError::new("lock", &lock_path)(error).into()),
        }
        failpoint::reach("open.locked");
        let content = ContentStore::open(root)?;
        failpoint::reach("open.emptied");
        let path = root.join("images.redb");
        // To begin anew would be to clear all layers away.
        if !path.metadata().is_ok_and(|file| file.len() > 0) && !content.find_unrecorded(|_| false)?.is_empty() {
            return Err(OpenError::RecordsLost { records: path });
        }
        let records = Records::open(&path)?;
        let everything = records.read()?;
        let mut index = Index::default();
        let layers = everything.layers.into_iter().map(|(id, record)| Change::PutLayer(id, record));
        let images = everything.images.into_iter().map(|(id, record)| Change::PutImage(id, record));
        let names = everything.names.into_iter().map(|(name, id)| Change::PutName(name, id));
        index.apply(layers.chain(images).chain(names).collect())?;
        for path in content.find_unrecorded(|diff_id| index.layers.contains_key(diff_id))? {
            ContentStore::discard_unrecorded(&path)?;
        }
        let epoch = records.begin_run(boot_id)?;
        failpoint::reach("open.begun");
        Ok(Self { content, limits, converter, records, index: Mutex::new(index), epoch, _lock: lock })
    }

    /// All images but those that were removed and are kept for containers, newest first.
    pub fn list(&self) -> Vec<ImageSummary> {
        let index = self.index();
        let mut list: Vec<_> = index
            .attached()
            .filter(|image| image.id != *nothing::image_id())
            .map(|image| {
                let mut summary = summary(image, &index.names_of(&image.id));
                summary.parent = index.records.get(&image.id).and_then(|record| record.parent.clone());
                summary
            })
            .collect();
        let parents: BTreeSet<Digest> = list.iter().filter_map(|image| image.parent.clone()).collect();
        list.iter_mut().for_each(|image| image.has_children = parents.contains(&image.id));
        list.sort_by(|a, b| {
            (b.created_unix, b.created_ns).cmp(&(a.created_unix, a.created_ns)).then_with(|| a.id.cmp(&b.id))
        });
        list
    }

    /// Finds an image by name, full id (with or without `sha256:`), or the first digits of its id.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`]; [`ResolveError::Ambiguous`]: several ids begin so.
    pub fn resolve(&self, name_or_id: &str) -> Result<Image, ResolveError> {
        let index = self.index();
        let id = match find(&index, name_or_id)? {
            Found::ByName(_, id) | Found::ById(id) => id,
        };
        Ok(index.images[&id].as_ref().clone())
    }

    /// The image that a build step made this one from, if that is still there.
    pub fn parent(&self, id: &Digest) -> Option<Digest> {
        let index = self.index();
        let parent = index.records.get(id)?.parent.clone()?;
        index.is_attached(&parent).then_some(parent)
    }

    /// The images that build steps made from one.
    pub(crate) fn children(&self, parent: &Digest) -> Vec<Image> {
        let index = self.index();
        let children = index.attached().filter(|image| index.records[&image.id].parent.as_ref() == Some(parent));
        children.map(|image| image.as_ref().clone()).collect()
    }

    /// The image with this id, even if it was removed by force and is kept for the containers that use it.
    pub fn image(&self, id: &Digest) -> Option<Image> {
        self.index().images.get(id).map(|image| image.as_ref().clone())
    }

    /// Gives an image a further name; one that has the name already loses it.
    ///
    /// # Errors
    /// [`TagError::Resolve`]: no such image. [`TagError::Digest`]: `target` has a digest. [`TagError::Store`].
    pub fn tag(&self, name_or_id: &str, target: &Reference) -> Result<(), TagError> {
        if target.digest().is_some() {
            return Err(TagError::Digest);
        }
        let mut index = self.index();
        let id = match find(&index, name_or_id)? {
            Found::ByName(_, id) | Found::ById(id) => id,
        };
        self.change(&mut index, vec![Change::PutName(target.to_string(), id)])?;
        Ok(())
    }

    /// The short names with tags of an image, in order.
    pub fn find_tags(&self, id: &Digest) -> Vec<String> {
        split_names(&self.index().names_of(id)).0
    }

    /// The short names with digests of an image, in order.
    pub fn find_digests(&self, id: &Digest) -> Vec<String> {
        split_names(&self.index().names_of(id)).1
    }

    /// The tags that a name stands for: itself, or without a tag all of its repository; none for an id or a digest.
    pub(crate) fn tags_meant_by(&self, name: &str) -> Vec<Reference> {
        let Ok(reference) = name.parse::<Reference>() else { return Vec::new() };
        let last = name.rsplit('/').next().unwrap_or(name);
        let repository_only = !last.contains([':', '@']);
        let index = self.index();
        let names = index.names.keys().filter_map(|name| name.parse::<Reference>().ok());
        let meant = |other: &Reference| {
            other.digest().is_none()
                && (*other == reference || repository_only && other.repository() == reference.repository())
        };
        names.filter(meant).collect()
    }

    /// Length of the regular files of all layers, each layer counted once however many images have it.
    pub fn layers_bytes(&self) -> u64 {
        self.index().layers.values().map(|layer| layer.content_bytes).sum()
    }

    /// The steps that made an image, newest first.
    pub fn history(&self, image: &Image) -> Vec<HistoryEntry> {
        let mut sizes = image.layer_bytes.iter().copied();
        let steps = image.config.history().as_deref().unwrap_or_default();
        let entry = |step: &oci_spec::image::History| HistoryEntry {
            id: None,
            created_unix: config_time(step.created().as_deref()),
            created_by: step.created_by().clone().unwrap_or_default(),
            comment: step.comment().clone().unwrap_or_default(),
            size_bytes: if step.empty_layer().unwrap_or(false) { 0 } else { sizes.next().unwrap_or(0) },
            tags: Vec::new(),
        };
        let mut entries: Vec<_> = steps.iter().map(entry).collect();
        // A configuration need not say how its layers came about.
        entries.extend(sizes.map(|size_bytes| HistoryEntry {
            id: None,
            created_unix: image.created_unix(),
            created_by: String::new(),
            comment: String::new(),
            size_bytes,
            tags: Vec::new(),
        }));
        entries.reverse();
        // What was built here is known step by step.
        let mut id = Some(image.id.clone());
        for entry in &mut entries {
            let Some(step) = id.take() else { break };
            entry.tags = self.find_tags(&step);
            id = self.parent(&step).filter(|parent| parent != nothing::image_id());
            entry.id = Some(step);
        }
        entries
    }

    /// Writes changes to the disk and then to memory.
    fn change(&self, index: &mut Index, changes: Vec<Change>) -> Result<(), StoreError> {
        self.records.commit(&changes)?;
        index.apply(changes)?;
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing panics between the two halves of a change; a poisoned index is as good as any.
        self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for ImageStore {
    fn drop(&mut self) {
        if let Err(error) = self.records.end_run() {
            tracing::warn!(%error, "cannot note that the image store is closed; layers may be verified once more");
        }
    }
}

fn find(index: &Index, text: &str) -> Result<Found, ResolveError> {
    let not_found = || ResolveError::NotFound { name: text.chars().take(300).collect() };
    if let Ok(reference) = text.parse::<Reference>()
        && let Some(id) = index.names.get(&reference.to_string())
    {
        return Ok(Found::ByName(reference, id.clone()));
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(not_found());
    }
    let mut matching = index.attached().filter(|image| image.id.hex().starts_with(prefix));
    match (matching.next(), matching.next()) {
        (Some(image), None) => Ok(Found::ById(image.id.clone())),
        (None, _) => Err(not_found()),
        (Some(_), Some(_)) => Err(ResolveError::Ambiguous { prefix: prefix.to_owned() }),
    }
}

fn split_names(names: &[Reference]) -> (Vec<String>, Vec<String>) {
    let (digests, tags): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.digest().is_some());
    let familiar = |names: Vec<&Reference>| names.into_iter().map(Reference::familiar).collect();
    (familiar(tags), familiar(digests))
}

fn summary(image: &Image, names: &[Reference]) -> ImageSummary {
    let (repo_tags, repo_digests) = split_names(names);
    ImageSummary {
        id: image.id.clone(),
        repo_tags,
        repo_digests,
        created_unix: image.created_unix(),
        created_ns: image.created_at().1,
        size_bytes: image.size_bytes,
        labels: image.config.labels_of_config().cloned().unwrap_or_default(),
        parent: None,
        has_children: false,
    }
}

fn config_time(text: Option<&str>) -> i64 {
    text.and_then(crate::timestamp::Timestamp::from_rfc3339).map_or(0, |time| time.seconds)
}

#[cfg(test)]
mod tests;
