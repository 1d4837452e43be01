//! The names of one layer, in memory, while its content streams past.
//!
//! Nothing is ever unpacked to a file system, so a name cannot lead out of the layer: looking a path up happens here, over
//! names that came from the same layer. A symbolic link in the middle of a path is followed as inside a container
//! whose root is the layer: absolute targets begin at the layer's root, and `..` at the root stays there. What a
//! followed link points to and the layer lacks is made as a folder. The last component is never followed: an entry
//! replaces what had its name, and only a folder over a folder keeps what is in it. A lower layer's links play no part.
//!
//! Whiteouts are collected beside the names, so that they mean the same wherever in the stream they come: `.wh.x` hides the lower
//! layers' `x`; if this layer has an `x` of its own that stays, and is opaque if it is a folder. Source: OCI image-spec, layer.md#whiteouts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::erofs::{FileType, Xattrs};
use crate::limits::{MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_SYMLINKS, MAX_TREE_BYTES};
use crate::timestamp::Timestamp;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Bookkeeping of a union file system that nobody uses any more; old images still hold it.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Memory for a name beside its bytes: its place in a folder, and what the allocator adds.
const NAME_OVERHEAD: usize = 64;
/// The root folder.
pub(crate) const ROOT: usize = 0;

/// Why an entry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum EntryFault {
    /// A `..` in its path.
    #[error("the path has a '..' component")]
    ParentComponent,
    /// A path without a name for something that is no folder.
    #[error("only a folder can be the root")]
    NotARoot,
    /// Longer than [`MAX_PATH_BYTES`], a name longer than [`MAX_NAME_BYTES`], or deeper than [`MAX_DEPTH`].
    #[error("the path or one of its names is too long, or it is too deep")]
    PathTooLong,
    /// A NUL in a path or link target.
    #[error("there is a NUL character in the path or the link")]
    NulCharacter,
    /// Something in the middle of the path is no folder.
    #[error("a parent of it is not a folder")]
    ParentNotFolder,
    /// Symbolic links in the path go round in a circle.
    #[error("too many symbolic links in the path")]
    SymlinkLoop,
    /// `.wh.` alone, `.wh..`, `.wh...`, a whiteout in the middle of a path or shipped as something else than a file.
    #[error("not a valid whiteout")]
    Whiteout,
    /// A hard link to something that the layer does not have, or to a folder.
    #[error("the hard link's target is not a file of the same layer")]
    HardLinkTarget,
    /// An empty or overlong target.
    #[error("the symbolic link's target is empty or too long")]
    SymlinkTarget,
    /// Negative, -1, or above 2^32 - 2.
    #[error("the owner is out of range")]
    Owner,
    /// A device number out of range, or 0:0, which is overlayfs' own sign for a whiteout.
    #[error("the device number is out of range or that of a whiteout")]
    Device,
    /// The names so far take more than [`MAX_TREE_BYTES`].
    #[error("the names, links and attributes of the layer take more than {MAX_TREE_BYTES} bytes of memory")]
    LayerTooLarge,
    /// Too many, too long, or malformed extended attributes.
    #[error("the extended attributes are over the limits")]
    Xattrs,
}

/// What a folder says of itself.
#[derive(Debug, Clone)]
pub(crate) struct FolderFacts {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub modified: Timestamp,
    pub xattrs: Xattrs,
}

impl Default for FolderFacts {
    /// A folder that the stream only implies.
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, modified: Timestamp::default(), xattrs: Xattrs::default() }
    }
}

/// A folder with its names.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub facts: FolderFacts,
    /// The root is its own parent.
    pub parent: usize,
    pub children: BTreeMap<Box<[u8]>, Child>,
    whiteouts: BTreeSet<Box<[u8]>>,
    /// Hides everything that lower layers have here.
    pub opaque: bool,
    depth: u16,
}

impl Folder {
    /// Names that are hidden and not there.
    pub fn hidden_names(&self) -> impl Iterator<Item = &[u8]> {
        self.whiteouts.iter().filter(|name| !self.children.contains_key(*name)).map(|name| &name[..])
    }
}

/// What a name stands for: index of a folder or of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    Folder(usize),
    Leaf(usize),
}

/// A file, link, device or pipe that is written already.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub inode: u64,
    pub file_type: FileType,
    /// Of a symbolic link.
    pub target: Option<Box<[u8]>>,
}

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is the root folder.
    Root,
    /// A name in a folder.
    Name { folder: usize, name: Box<[u8]> },
    /// It hides this name of lower layers.
    Whiteout { folder: usize, name: Box<[u8]> },
    /// It hides all that lower layers have in this folder.
    Opaque { folder: usize },
    /// It means nothing.
    Ignored,
}

/// The names of one layer.
pub(crate) struct Tree {
    pub folders: Vec<Folder>,
    pub leaves: Vec<Leaf>,
    /// When the entry at hand was modified: folders that it implies get that, as no clock may play a part.
    at_hand: Timestamp,
    /// Memory taken, about; what is replaced still counts.
    used_bytes: usize,
    /// How much may be taken.
    budget_bytes: usize,
}

impl Tree {
    pub fn new() -> Self {
        Self {
            folders: vec![Folder::default()],
            leaves: Vec::new(),
            at_hand: Timestamp::default(),
            used_bytes: 0,
            budget_bytes: MAX_TREE_BYTES,
        }
    }

    /// Says when the next entry was modified.
    pub fn begin_entry(&mut self, modified: Timestamp) {
        self.at_hand = modified;
        let root = &mut self.folders[ROOT].facts;
        if root.modified == Timestamp::default() {
            root.modified = modified;
        }
    }

    /// Finds where an entry with this path goes, making the folders above it.
    pub fn locate(&mut self, path: &[u8]) -> Result<Place, EntryFault> {
        let mut components = split_path(path)?;
        let Some(name) = components.pop() else { return Ok(Place::Root) };
        if components.iter().any(|component| component.starts_with(AUFS_PREFIX)) {
            return Ok(Place::Ignored);
        }
        if components.iter().any(|component| component.starts_with(WHITEOUT_PREFIX)) {
            return Err(EntryFault::Whiteout);
        }
        let special = name.starts_with(WHITEOUT_PREFIX);
        if special && name != OPAQUE_MARKER && name.starts_with(AUFS_PREFIX) {
            return Ok(Place::Ignored);
        }
        let folder = self.enter(&components)?;
        if name == OPAQUE_MARKER {
            return Ok(Place::Opaque { folder });
        }
        if !special {
            return Ok(Place::Name { folder, name: name.into() });
        }
        match &name[WHITEOUT_PREFIX.len()..] {
            b"" | b"." | b".." => Err(EntryFault::Whiteout),
            hidden => Ok(Place::Whiteout { folder, name: hidden.into() }),
        }
    }

    /// Finds a leaf for a hard link. No symbolic link in the target's path is followed, and nothing is made.
    pub fn find_leaf(&self, path: &[u8]) -> Result<usize, EntryFault> {
        let mut at = Child::Folder(ROOT);
        for component in split_path(path)? {
            let Child::Folder(folder) = at else { return Err(EntryFault::HardLinkTarget) };
            at = *self.folders[folder].children.get(component).ok_or(EntryFault::HardLinkTarget)?;
        }
        match at {
            Child::Leaf(leaf) => Ok(leaf),
            Child::Folder(_) => Err(EntryFault::HardLinkTarget),
        }
    }

    /// Gives a name to a new leaf.
    pub fn put_leaf(&mut self, folder: usize, name: Box<[u8]>, leaf: Leaf) -> Result<(), EntryFault> {
        self.charge(size_of::<Leaf>() + leaf.target.as_ref().map_or(0, |target| target.len()))?;
        self.leaves.push(leaf);
        self.put_link(folder, name, self.leaves.len() - 1)
    }

    /// Gives a further name to a leaf.
    pub fn put_link(&mut self, folder: usize, name: Box<[u8]>, leaf: usize) -> Result<(), EntryFault> {
        self.charge(NAME_OVERHEAD + name.len())?;
        self.folders[folder].children.insert(name, Child::Leaf(leaf));
        Ok(())
    }

    /// Makes a folder, or changes what one says of itself.
    pub fn put_folder(&mut self, folder: usize, name: Box<[u8]>, facts: FolderFacts) -> Result<(), EntryFault> {
        self.charge(facts.xattrs.encoded_len())?;
        let index = match self.folders[folder].children.get(&name) {
            Some(Child::Folder(index)) => *index,
            Some(Child::Leaf(_)) | None => self.make_folder(folder, name)?,
        };
        self.folders[index].facts = facts;
        Ok(())
    }

    /// Changes what the root says of itself.
    pub fn put_root(&mut self, facts: FolderFacts) {
        self.folders[ROOT].facts = facts;
    }

    /// Hides a name of lower layers.
    pub fn hide(&mut self, folder: usize, name: Box<[u8]>) -> Result<(), EntryFault> {
        self.charge(NAME_OVERHEAD + name.len())?;
        self.folders[folder].whiteouts.insert(name);
        Ok(())
    }

    /// Hides everything of lower layers.
    pub fn hide_all(&mut self, folder: usize) {
        self.folders[folder].opaque = true;
    }

    /// When everything has passed: the folders that can be reached from the root, it first, parents before children.
    pub fn settle(&mut self) -> Vec<usize> {
        let mut order = vec![ROOT];
        let mut next = 0;
        while let Some(&index) = order.get(next) {
            let folder = &self.folders[index];
            let mut hidden_folders = Vec::new();
            for (name, child) in &folder.children {
                if let Child::Folder(child) = child {
                    order.push(*child);
                    hidden_folders.extend(folder.whiteouts.contains(name).then_some(*child));
                }
            }
            hidden_folders.into_iter().for_each(|child| self.folders[child].opaque = true);
            next += 1;
        }
        order
    }

    /// Walks to a folder, following symbolic links, making what is missing.
    fn enter(&mut self, components: &[&[u8]]) -> Result<usize, EntryFault> {
        let mut rest: VecDeque<Vec<u8>> = components.iter().map(|component| component.to_vec()).collect();
        let (mut at, mut followed) = (ROOT, 0);
        while let Some(component) = rest.pop_front() {
            if component == b".." {
                at = self.folders[at].parent;
                continue;
            }
            at = match self.folders[at].children.get(&component[..]) {
                Some(Child::Folder(folder)) => *folder,
                None => self.make_folder(at, component.into_boxed_slice())?,
                Some(Child::Leaf(leaf)) => {
                    let target = self.leaves[*leaf].target.as_ref().ok_or(EntryFault::ParentNotFolder)?;
                    followed += 1;
                    if followed > MAX_SYMLINKS {
                        return Err(EntryFault::SymlinkLoop);
                    }
                    let parts = target.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
                    parts.rev().for_each(|part| rest.push_front(part.to_vec()));
                    if target.starts_with(b"/") { ROOT } else { at }
                }
            };
        }
        Ok(at)
    }

    fn make_folder(&mut self, parent: usize, name: Box<[u8]>) -> Result<usize, EntryFault> {
        let depth = self.folders[parent].depth + 1;
        if depth > MAX_DEPTH || name.len() > MAX_NAME_BYTES {
            return Err(EntryFault::PathTooLong);
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            return Err(EntryFault::Whiteout);
        }
        self.charge(size_of::<Folder>() + NAME_OVERHEAD + name.len())?;
        let index = self.folders.len();
        let facts = FolderFacts { modified: self.at_hand, ..FolderFacts::default() };
        self.folders.push(Folder { parent, depth, facts, ..Folder::default() });
        self.folders[parent].children.insert(name, Child::Folder(index));
        Ok(index)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), EntryFault> {
        self.used_bytes += bytes;
        if self.used_bytes > self.budget_bytes { Err(EntryFault::LayerTooLarge) } else { Ok(()) }
    }
}

/// The components of a path below the layer's root, without empty ones and `.`.
fn split_path(path: &[u8]) -> Result<Vec<&[u8]>, EntryFault> {
    if path.len() > MAX_PATH_BYTES {
        return Err(EntryFault::PathTooLong);
    }
    if path.contains(&0) {
        return Err(EntryFault::NulCharacter);
    }
    let components: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if components.contains(&&b".."[..]) {
        return Err(EntryFault::ParentComponent);
    }
    if components.iter().any(|component| component.len() > MAX_NAME_BYTES) {
        return Err(EntryFault::PathTooLong);
    }
    Ok(components)
}

#[cfg(test)]
mod tests;
