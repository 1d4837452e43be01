//! Holding a layer for work that goes on for a while.

use std::sync::Arc;

use proto::Digest;

use super::{ImageStore, StoreError};
use crate::records::Change;
use crate::reference::Reference;

/// A layer of the store that nobody frees while this lives.
pub(crate) struct LayerPin {
    store: Arc<ImageStore>,
    diff_id: Digest,
}

impl LayerPin {
    /// Pins a layer if it is there and sound.
    pub fn new(store: &Arc<ImageStore>, diff_id: &Digest) -> Option<Self> {
        {
            let mut index = store.index();
            if !index.layers.contains_key(diff_id) {
                return None;
            }
            *index.pins.entry(diff_id.clone()).or_default() += 1;
        }
        let pin = Self { store: Arc::clone(store), diff_id: diff_id.clone() };
        // Looking may take long, and needs no lock.
        store.check_layer(diff_id).is_ok().then_some(pin)
    }
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        let mut index = self.store.index();
        if let Some(pins) = index.pins.get_mut(&self.diff_id) {
            *pins -= 1;
            if *pins == 0 {
                index.pins.remove(&self.diff_id);
            }
        }
    }
}

impl ImageStore {
    /// Gives an image a name with a digest. When: the registry that the name is of said so; an image that is gone by now
    /// gets none.
    pub(crate) fn name_by_digest(&self, id: &Digest, name: &Reference) -> Result<(), StoreError> {
        let mut index = self.index();
        if !index.is_attached(id) {
            return Ok(());
        }
        self.change(&mut index, vec![Change::PutName(name.to_string(), id.clone())])
    }
}
