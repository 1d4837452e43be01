//! Leases: what somebody reads, or is about to use, is not freed under him.
//!
//! Three things keep a layer: a recorded image, a batch under way that builds on it (a pin), and a lease of an image. A lease
//! ends when its guard is dropped, and with the process: no clock has a part in it. So there is nothing to expire.

use std::sync::Arc;

use proto::Digest;

use super::{Found, ImageStore, ResolveError, find};
use crate::config::Image;

/// Keeps an image and its layers while it lives. An image that is removed meanwhile is out of sight at once, and freed by
/// the first [`ImageStore::collect`] after the lease has ended.
#[must_use = "the lease ends when this is dropped"]
pub struct ImageLease<'s> {
    store: &'s ImageStore,
    id: Digest,
}

/// As [`ImageLease`], for whoever cannot borrow the store: a build that goes on over many steps.
#[must_use = "the lease ends when this is dropped"]
pub struct ImageHold {
    store: Arc<ImageStore>,
    id: Digest,
}

impl ImageStore {
    /// Leases an image that is there, even if it was removed meanwhile and is only kept; `None` if it is gone.
    pub fn hold(self: &Arc<Self>, id: &Digest) -> Option<ImageHold> {
        let mut index = self.index();
        index.images.get(id)?;
        *index.leases.entry(id.clone()).or_default() += 1;
        Some(ImageHold { store: Arc::clone(self), id: id.clone() })
    }

    fn end_lease(&self, id: &Digest) {
        let mut index = self.index();
        if let Some(leases) = index.leases.get_mut(id) {
            *leases -= 1;
        }
        index.leases.retain(|_, leases| *leases > 0);
    }

    /// Finds an image as [`ImageStore::resolve`] does and leases it, in one step.
    ///
    /// # Errors
    /// As [`ImageStore::resolve`].
    pub fn lease(&self, name_or_id: &str) -> Result<(Image, ImageLease<'_>), ResolveError> {
        let mut index = self.index();
        let id = match find(&index, name_or_id)? {
            Found::ByName(_, id) | Found::ById(id) => id,
        };
        *index.leases.entry(id.clone()).or_default() += 1;
        Ok((index.images[&id].as_ref().clone(), ImageLease { store: self, id }))
    }
}

impl Drop for ImageLease<'_> {
    fn drop(&mut self) {
        self.store.end_lease(&self.id);
    }
}

impl Drop for ImageHold {
    fn drop(&mut self) {
        self.store.end_lease(&self.id);
    }
}
