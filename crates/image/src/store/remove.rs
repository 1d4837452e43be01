//! Removing names and images, by Docker's rules. Source: moby, daemon/images/image_delete.go.

use std::collections::BTreeSet;

use proto::{Digest, ErrorKind};

use super::{Found, ImageStore, Index, ResolveError, StoreError, find};
use crate::config::Image;
use crate::records::{Change, ImageRecord};
use crate::reference::Reference;

/// A container that was made from an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// Its id.
    pub container: String,
    /// A running one keeps its image whatever is asked for.
    pub running: bool,
}

/// What a removal did, in its order; as Docker reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone.
    Untagged(String),
    /// An image is gone, or a stack of layers that no other image has (its chainID).
    Deleted(Digest),
}

/// An image or name that is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The only name of an image that a container uses.
    #[error(
        "conflict: unable to remove repository reference {name:?} (must force) - container {container} is using its \
         referenced image {image}"
    )]
    NameInUse {
        /// As it was given.
        name: String,
        /// Short id of the container.
        container: String,
        /// Short id of the image.
        image: String,
    },
    /// A container is running from it.
    #[error(
        "conflict: unable to delete {image} (cannot be forced) - image is being used by running container {container}"
    )]
    Running {
        /// Short id of the image.
        image: String,
        /// Short id of the container.
        container: String,
    },
    /// A stopped container was made from it.
    #[error(
        "conflict: unable to delete {image} (must be forced) - image is being used by stopped container {container}"
    )]
    Stopped {
        /// Short id of the image.
        image: String,
        /// Short id of the container.
        container: String,
    },
    /// It was asked for by id and has several names.
    #[error("conflict: unable to delete {image} (must be forced) - image is referenced in multiple repositories")]
    ManyNames {
        /// Short id of the image.
        image: String,
    },
    /// The records failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoveError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::NameInUse { .. } | Self::Running { .. } | Self::Stopped { .. } | Self::ManyNames { .. } => {
                ErrorKind::Conflict
            }
            Self::Store(error) => error.kind(),
        }
    }
}

/// Tells who uses an image.
pub(super) type InUse<'a> = &'a dyn Fn(&Digest) -> Vec<ImageUse>;

impl ImageStore {
    /// Removes a name; with the last one, or by id, the image, and with it the layers that no other image has.
    ///
    /// When: an image that stopped containers use is removed only by `force`; its layers then stay until
    /// [`ImageStore::collect`] finds that nobody uses it any more. One that a running container uses stays.
    /// `in_use` is called with the store locked: it must not call the store.
    ///
    /// # Errors
    /// As the variants of [`RemoveError`] say; nothing was removed then.
    pub fn remove(&self, name_or_id: &str, force: bool, in_use: InUse<'_>) -> Result<Vec<Removed>, RemoveError> {
        let mut index = self.index();
        let (id, dropped) = match find(&index, name_or_id)? {
            Found::ByName(name, id) => (id, Some(name)),
            Found::ById(id) => (id, None),
        };
        let names = index.names_of(&id);
        // With the last tag of a repository go the digests by which it was pulled. Source: moby, `ImageDelete`.
        let dropped: Vec<Reference> = dropped.map_or_else(Vec::new, |name| with_digests(name, &names));
        let users = in_use(&id);
        let delete = match dropped.len() {
            0 => may_delete_by_id(&id, &names, &users, force)?,
            count if names.len() > count => false,
            _ => may_delete_with_last_name(name_or_id, &id, &users, force)?,
        };
        let gone: Vec<Reference> = if delete { names } else { dropped };
        let mut removed: Vec<_> = gone.iter().map(|name| Removed::Untagged(name.familiar())).collect();
        let mut changes: Vec<_> = gone.iter().map(|name| Change::DropName(name.to_string())).collect();
        let mut freed = Vec::new();
        if delete {
            removed.push(Removed::Deleted(id.clone()));
            if users.is_empty() {
                let (layers, chains) = freed_layers(&index, &index.images[&id]);
                changes.push(Change::DropImage(id));
                changes.extend(layers.iter().cloned().map(Change::DropLayer));
                removed.extend(chains.into_iter().map(Removed::Deleted));
                freed = layers;
            } else {
                let record = ImageRecord { detached: true, ..index.records[&id].clone() };
                changes.push(Change::PutImage(id, record));
            }
        }
        self.change(&mut index, changes)?;
        self.discard(&freed);
        Ok(removed)
    }

    /// Frees the layers of images that were removed by force and that nobody uses any more; gives their ids.
    ///
    /// # Errors
    /// [`StoreError`]: the records cannot be written; nothing was freed then.
    pub fn collect(&self, in_use: InUse<'_>) -> Result<Vec<Digest>, StoreError> {
        let mut index = self.index();
        let mut collected = Vec::new();
        let detached: Vec<Digest> = index.images.keys().filter(|id| !index.is_attached(id)).cloned().collect();
        for id in detached {
            if !in_use(&id).is_empty() {
                continue;
            }
            let (layers, _) = freed_layers(&index, &index.images[&id]);
            let drops = layers.iter().cloned().map(Change::DropLayer);
            let changes = std::iter::once(Change::DropImage(id.clone())).chain(drops).collect();
            self.change(&mut index, changes)?;
            self.discard(&layers);
            collected.push(id);
        }
        Ok(collected)
    }

    /// Removes files whose record is gone. When: under the index's lock, so that nobody records them anew meanwhile.
    fn discard(&self, layers: &[Digest]) {
        for diff_id in layers {
            if let Err(error) = self.content.discard(diff_id) {
                tracing::warn!(%diff_id, %error, "cannot remove a layer's file; the next start will");
            }
        }
    }
}

/// A name that is to go, and the digests of its repository if no tag of it is left.
fn with_digests(name: Reference, names: &[Reference]) -> Vec<Reference> {
    let same = |other: &&Reference| **other != name && other.repository() == name.repository();
    let others: Vec<Reference> = names.iter().filter(same).cloned().collect();
    match name.digest().is_none() && others.iter().all(|other| other.digest().is_some()) {
        true => [vec![name], others].concat(),
        false => vec![name],
    }
}

/// The image's last name was given: a forced removal under a running container takes the name only.
fn may_delete_with_last_name(name: &str, id: &Digest, users: &[ImageUse], force: bool) -> Result<bool, RemoveError> {
    match users.first() {
        Some(user) if !force => Err(RemoveError::NameInUse {
            name: name.to_owned(),
            container: short(&user.container),
            image: short(id.hex()),
        }),
        _ => Ok(!users.iter().any(|user| user.running)),
    }
}

fn may_delete_by_id(id: &Digest, names: &[Reference], users: &[ImageUse], force: bool) -> Result<bool, RemoveError> {
    let image = short(id.hex());
    if let Some(user) = users.iter().find(|user| user.running) {
        return Err(RemoveError::Running { image, container: short(&user.container) });
    }
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    if tags > 1 && !force {
        return Err(RemoveError::ManyNames { image });
    }
    match users.first() {
        Some(user) if !force => Err(RemoveError::Stopped { image, container: short(&user.container) }),
        _ => Ok(true),
    }
}

/// The layers, and the chainIDs from the top down, that go when an image goes.
fn freed_layers(index: &Index, image: &Image) -> (Vec<Digest>, Vec<Digest>) {
    let others = || index.images.values().filter(|other| other.id != image.id);
    let kept: BTreeSet<&Digest> = others().flat_map(|other| &other.diff_ids).chain(index.pins.keys()).collect();
    let kept_chains: BTreeSet<Digest> = others().flat_map(|other| other.chain_ids()).collect();
    let own: BTreeSet<&Digest> = image.diff_ids.iter().collect();
    let layers = own.into_iter().filter(|diff_id| !kept.contains(diff_id)).cloned().collect();
    let chains = image.chain_ids().into_iter().rev().filter(|chain| !kept_chains.contains(chain)).collect();
    (layers, chains)
}

/// The first 12 digits of an id, as Docker shows it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}
