//! Removing names and images, by Docker's rules. Source: moby, daemon/images/image_delete.go.

use std::collections::BTreeSet;

use proto::{Digest, ErrorKind};

use super::{Found, ImageStore, Index, ResolveError, StoreError, find};
use crate::config::Image;
use crate::failpoint;
use crate::nothing;
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
    /// Images were built from it.
    #[error("conflict: unable to delete {image} (cannot be forced) - image has dependent child images")]
    Children {
        /// Short id of the image.
        image: String,
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
            Self::NameInUse { .. }
            | Self::Running { .. }
            | Self::Stopped { .. }
            | Self::Children { .. }
            | Self::ManyNames { .. } => ErrorKind::Conflict,
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
    /// [`ImageStore::collect`] finds that nobody uses it any more, and so do those of an image that is leased. One that a running container uses stays.
    /// `in_use` is called with the store locked: it must not call the store.
    ///
    /// # Errors
    /// As the variants of [`RemoveError`] say; nothing was removed then.
    pub fn remove(&self, name_or_id: &str, force: bool, in_use: InUse<'_>) -> Result<Vec<Removed>, RemoveError> {
        self.remove_with_steps(name_or_id, force, true, in_use)
    }

    /// As [`ImageStore::remove`]; with `prune` false, the nameless images that it was built from stay.
    ///
    /// # Errors
    /// As [`ImageStore::remove`].
    pub fn remove_with_steps(
        &self,
        name_or_id: &str,
        force: bool,
        prune: bool,
        in_use: InUse<'_>,
    ) -> Result<Vec<Removed>, RemoveError> {
        let mut index = self.index();
        let (id, dropped) = match find(&index, name_or_id)? {
            Found::ByName(name, id) => (id, Some(name)),
            Found::ById(id) => (id, None),
        };
        let names = index.names_of(&id);
        let users = in_use(&id);
        // With the last tag of a repository its digests go too.
        let untagged = dropped.as_ref().map(|name| names_going_with(name, &names));
        let delete = match &untagged {
            Some(going) if going.len() < names.len() => false,
            Some(_) => may_delete_with_last_name(name_or_id, &id, &users, force)? && !index.has_children(&id),
            None if index.has_children(&id) => return Err(RemoveError::Children { image: short(id.hex()) }),
            None => may_delete_by_id(&id, &names, &users, force)?,
        };
        let gone: Vec<Reference> = if delete { names } else { untagged.unwrap_or_default() };
        let mut removed: Vec<_> = gone.iter().map(|name| Removed::Untagged(name.familiar())).collect();
        let mut changes: Vec<_> = gone.iter().map(|name| Change::DropName(name.to_string())).collect();
        let mut freed = Vec::new();
        let parent = index.records[&id].parent.clone().filter(|_| delete && prune);
        if delete {
            removed.push(Removed::Deleted(id.clone()));
            if users.is_empty() && !index.leases.contains_key(&id) {
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
        failpoint::reach("remove.begin");
        self.change(&mut index, changes)?;
        failpoint::reach("remove.recorded");
        self.discard(&freed);
        failpoint::reach("remove.end");
        if let Some(parent) = parent {
            self.remove_steps(&mut index, parent, in_use, &mut removed)?;
        }
        Ok(removed)
    }

    /// Removes the steps of the build that an image came from, as far as nothing else is made of them.
    fn remove_steps(
        &self,
        index: &mut Index,
        from: Digest,
        in_use: InUse<'_>,
        removed: &mut Vec<Removed>,
    ) -> Result<(), StoreError> {
        let mut next = Some(from);
        while let Some(id) = next.take() {
            let is_step = index.is_attached(&id)
                && !index.has_children(&id)
                && !index.leases.contains_key(&id)
                && index.names_of(&id).is_empty()
                && in_use(&id).is_empty();
            if !is_step {
                return Ok(());
            }
            next = index.records[&id].parent.clone();
            let (layers, chains) = freed_layers(index, &index.images[&id]);
            let drops = layers.iter().cloned().map(Change::DropLayer);
            let changes = std::iter::once(Change::DropImage(id.clone())).chain(drops).collect();
            self.change(index, changes)?;
            self.discard(&layers);
            if id != *nothing::image_id() {
                removed.push(Removed::Deleted(id));
            }
            removed.extend(chains.into_iter().map(Removed::Deleted));
        }
        Ok(())
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
            if index.leases.contains_key(&id) || !in_use(&id).is_empty() {
                continue;
            }
            let (layers, _) = freed_layers(&index, &index.images[&id]);
            let drops = layers.iter().cloned().map(Change::DropLayer);
            let changes = std::iter::once(Change::DropImage(id.clone())).chain(drops).collect();
            failpoint::reach("collect.begin");
            self.change(&mut index, changes)?;
            failpoint::reach("collect.recorded");
            self.discard(&layers);
            failpoint::reach("collect.end");
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

/// The names that are removed when one of them is: itself, and the digests that lead to the image in the same repository
/// unless a tag of that repository stays.
fn names_going_with(name: &Reference, names: &[Reference]) -> Vec<Reference> {
    let same = |other: &&Reference| other.repository() == name.repository() && *other != name;
    let tag_stays = names.iter().filter(same).any(|other| other.digest().is_none());
    let mut going = vec![name.clone()];
    if name.digest().is_none() && !tag_stays {
        going.extend(names.iter().filter(same).cloned());
    }
    going
}

/// True if the names are no more than one tag and the digests of its repository.
fn is_one_repository(names: &[Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    tags <= 1 && names.iter().all(|name| name.repository() == names[0].repository())
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
    if !force && !is_one_repository(names) {
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
    // What images without layers are mounted from.
    let nothing = others().any(|other| other.diff_ids.is_empty()).then(nothing::layer);
    let own: BTreeSet<&Digest> = image.diff_ids.iter().collect();
    let layers =
        own.into_iter().filter(|diff_id| !kept.contains(diff_id) && nothing != Some(*diff_id)).cloned().collect();
    let chains = image.chain_ids().into_iter().rev().filter(|chain| !kept_chains.contains(chain)).collect();
    (layers, chains)
}

/// The first 12 digits of an id, as Docker shows it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}
