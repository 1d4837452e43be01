//! Adding images: everything of one archive, or nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::time::SystemTime;

use proto::Digest;

use super::{ImageStore, Index, StoreError};
use crate::config::ParsedConfig;
use crate::content::Staged;
use crate::convert::{Converted, LayerError};
use crate::failpoint;
use crate::records::{Change, ImageRecord, LayerRecord};
use crate::reference::Reference;
use crate::seal::seal;
use crate::timestamp::Timestamp;

/// A layer that could not be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddLayerError {
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A layer that is converted and on the disk, and not yet anybody's; gone when dropped.
#[derive(Debug)]
pub(crate) struct StagedLayer {
    pub converted: Converted,
    /// Of its EROFS file.
    file_digest: Digest,
    staged: Staged,
}

impl ImageStore {
    /// Converts a layer's tar stream, compressed or not, and puts it on the disk, for a batch to take over.
    pub(crate) fn stage_layer(&self, tar: impl Read) -> Result<StagedLayer, AddLayerError> {
        let (file, staged) = self.content.stage().map_err(StoreError::from)?;
        failpoint::reach("convert.begin");
        let converted = self.converter.run(tar, &file, &self.limits)?;
        failpoint::reach("convert.written");
        let file_digest = sync_and_seal(&file).map_err(LayerError::Write)?;
        failpoint::reach("convert.synced");
        Ok(StagedLayer { converted, file_digest, staged })
    }
}

/// Images that are being added. Drop without [`Batch::commit`] leaves nothing behind.
pub(crate) struct Batch<'s> {
    store: &'s ImageStore,
    /// Converted and synced, not yet a layer of the store.
    staged: BTreeMap<Digest, (Staged, LayerRecord)>,
    /// Layers that nobody may free before this is over.
    pinned: Vec<Digest>,
    changes: Vec<Change>,
}

/// A name that an image lost to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameMoved {
    pub name: Reference,
    pub from: Digest,
}

impl<'s> Batch<'s> {
    pub fn new(store: &'s ImageStore) -> Self {
        Self { store, staged: BTreeMap::new(), pinned: Vec::new(), changes: Vec::new() }
    }

    /// True if the layer need not be added; it then stays at least until the batch is over.
    pub fn has_layer(&mut self, diff_id: &Digest) -> bool {
        if self.staged.contains_key(diff_id) {
            return true;
        }
        {
            let mut index = self.store.index();
            if !index.layers.contains_key(diff_id) {
                return false;
            }
            *index.pins.entry(diff_id.clone()).or_default() += 1;
        }
        self.pinned.push(diff_id.clone());
        // A damaged file is made anew.
        match self.store.check_layer(diff_id) {
            Ok(()) => true,
            Err(fault) => {
                tracing::warn!(%diff_id, %fault, "a layer is damaged and is made anew");
                false
            }
        }
    }

    /// Converts a layer's tar stream, compressed or not, and puts it on the disk.
    pub fn add_layer(&mut self, tar: impl Read) -> Result<Converted, AddLayerError> {
        let layer = self.store.stage_layer(tar)?;
        let converted = layer.converted.clone();
        self.adopt(layer);
        Ok(converted)
    }

    /// Takes over a layer that was converted elsewhere.
    pub fn adopt(&mut self, layer: StagedLayer) {
        let record = LayerRecord {
            file_bytes: layer.converted.file_bytes,
            content_bytes: layer.converted.content_bytes,
            entries: layer.converted.entries,
            root_opaque: layer.converted.root_opaque,
            file_digest: Some(layer.file_digest),
            verified_in: self.store.epoch,
            damaged: false,
        };
        self.staged.insert(layer.converted.diff_id, (layer.staged, record));
    }

    /// Adds an image whose layers were all added or found.
    pub fn add_image(&mut self, config_json: String, parsed: &ParsedConfig, names: &[Reference]) {
        // One that a build has made stays its step, though it comes again from somewhere else.
        let parent = self.store.index().records.get(&parsed.id).and_then(|record| record.parent.clone());
        self.add_step(config_json, parsed, names, parent);
    }

    /// As [`Batch::add_image`], for one that a build step made from another.
    pub fn add_step(
        &mut self,
        config_json: String,
        parsed: &ParsedConfig,
        names: &[Reference],
        parent: Option<Digest>,
    ) {
        let now = Timestamp::from_system_time(SystemTime::now());
        let added_at_ns = now.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nanoseconds));
        let record = ImageRecord { config: config_json, added_at_ns, detached: false, parent };
        self.changes.push(Change::PutImage(parsed.id.clone(), record));
        self.changes.extend(names.iter().map(|name| Change::PutName(name.to_string(), parsed.id.clone())));
    }

    /// Makes everything part of the store: files, then their folder, then the records.
    pub fn commit(mut self) -> Result<Vec<NameMoved>, StoreError> {
        failpoint::reach("commit.begin");
        let store = self.store;
        let mut index = store.index();
        let mut new_layers = Vec::new();
        for (diff_id, (staged, record)) in std::mem::take(&mut self.staged) {
            // Replaces a damaged file; one that somebody else added meanwhile has the same bytes.
            if let Err(error) = store.content.keep(staged, &diff_id) {
                discard(store, &index, &new_layers);
                return Err(error.into());
            }
            new_layers.push(diff_id.clone());
            self.changes.push(Change::PutLayer(diff_id, record));
        }
        let moved = moved_names(&index, &self.changes);
        let changes = std::mem::take(&mut self.changes);
        failpoint::reach("commit.kept-all");
        let result = store.content.sync_layers().map_err(StoreError::from);
        failpoint::reach("commit.synced");
        if let Err(error) = result.and_then(|()| store.change(&mut index, changes)) {
            discard(store, &index, &new_layers);
            return Err(error);
        }
        drop(index);
        failpoint::reach("commit.end");
        Ok(moved)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut index = self.store.index();
        for diff_id in &self.pinned {
            if let Some(pins) = index.pins.get_mut(diff_id) {
                *pins -= 1;
            }
        }
        index.pins.retain(|_, pins| *pins > 0);
    }
}

/// Puts a file on the disk and reads its digest meanwhile: the disk has to be waited for anyway.
fn sync_and_seal(file: &File) -> io::Result<Digest> {
    std::thread::scope(|scope| {
        let sealing = scope.spawn(|| seal(file));
        let synced = file.sync_all();
        let sealed = sealing.join().map_err(|_| io::Error::other("the digest's thread panicked"))?;
        // A file that the disk did not take is dropped: a second fsync would say that all is well (fsyncgate).
        synced.and(sealed)
    })
}

/// Takes back files that were not recorded.
fn discard(store: &ImageStore, index: &Index, layers: &[Digest]) {
    for diff_id in layers.iter().filter(|diff_id| !index.layers.contains_key(*diff_id)) {
        if let Err(error) = store.content.discard(diff_id) {
            tracing::warn!(%diff_id, %error, "cannot take a layer back; the next start will");
        }
    }
}

fn moved_names(index: &Index, changes: &[Change]) -> Vec<NameMoved> {
    let moved = |change: &Change| {
        let Change::PutName(name, id) = change else { return None };
        let from = index.names.get(name).filter(|from| *from != id)?;
        Some(NameMoved { name: name.parse().ok()?, from: from.clone() })
    };
    changes.iter().filter_map(moved).collect()
}
