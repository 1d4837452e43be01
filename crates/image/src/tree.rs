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

mod arena;
mod settled;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::erofs::{FileType, Xattrs};
use crate::limits::{MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_SYMLINKS, MAX_TREE_BYTES};
use crate::timestamp::Timestamp;
use arena::{Arena, Bytes};
pub(crate) use settled::{Settled, Target};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Bookkeeping of a union file system that nobody uses any more; old images still hold it.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Memory for a name beside its bytes: itself, its place in the table (while that grows, in two), its place in the order.
const NODE_BYTES: usize = size_of::<Node>() + 17 + size_of::<u32>();
/// Memory for a leaf: itself and its count of names.
const LEAF_BYTES: usize = size_of::<StoredLeaf>() + size_of::<u32>();
/// Memory for a folder: itself, its place in the order, where its names begin. Its place in the file is settled when the
/// table is gone.
const FOLDER_BYTES: usize = size_of::<Folder>() + 2 * size_of::<u32>();
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

/// A folder. There may be a million, so its facts stand here without the gaps that [`FolderFacts`] has.
#[derive(Debug)]
struct Folder {
    seconds: i64,
    nanoseconds: u32,
    uid: u32,
    gid: u32,
    /// The root is its own parent.
    parent: u32,
    mode: u16,
    depth: u16,
    /// Hides everything that lower layers have here.
    opaque: bool,
    xattrs: Option<Box<Xattrs>>,
}

impl Folder {
    fn new(parent: u32, depth: u16, facts: FolderFacts) -> Self {
        let FolderFacts { mode, uid, gid, modified, xattrs } = facts;
        let xattrs = (xattrs.encoded_len() > 0).then(|| Box::new(xattrs));
        let Timestamp { seconds, nanoseconds } = modified;
        Self { seconds, nanoseconds, uid, gid, parent, mode, depth, opaque: false, xattrs }
    }
}

/// A name in a folder, and what it stands for.
#[derive(Debug)]
struct Node {
    /// Where its bytes are.
    name_at: u32,
    folder: u32,
    /// Index of a folder or a leaf, as `kind` says.
    child: u32,
    name_bytes: u8,
    kind: ChildKind,
    /// Hides what lower layers have under this name.
    hidden: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChildKind {
    None,
    Folder,
    Leaf,
}

impl Node {
    fn child(&self) -> Option<Child> {
        match self.kind {
            ChildKind::None => None,
            ChildKind::Folder => Some(Child::Folder(self.child as usize)),
            ChildKind::Leaf => Some(Child::Leaf(self.child as usize)),
        }
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

#[derive(Debug)]
struct StoredLeaf {
    inode: u64,
    target_at: u32,
    /// 0: it is no symbolic link.
    target_bytes: u16,
    file_type: FileType,
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
    folders: Arena<Folder>,
    leaves: Arena<StoredLeaf>,
    nodes: Arena<Node>,
    /// Of names and of symbolic links' targets.
    bytes: Bytes,
    /// Nodes by folder and name. Keyed by chance, so that nobody can choose names that collide.
    table: HashTable<u32>,
    hasher: RandomState,
    /// When the entry at hand was modified: folders that it implies get that, as no clock may play a part.
    at_hand: Timestamp,
    /// The root, which a stream need not describe, has the time of the first entry.
    root_is_dated: bool,
    /// Memory taken, about; what is replaced still counts.
    used_bytes: usize,
    /// How much may be taken.
    budget_bytes: usize,
}

impl Tree {
    pub fn new() -> Self {
        let mut folders = Arena::default();
        folders.push(Folder::new(0, 0, FolderFacts::default()));
        Self {
            folders,
            leaves: Arena::default(),
            nodes: Arena::default(),
            bytes: Bytes::default(),
            table: HashTable::new(),
            hasher: RandomState::new(),
            at_hand: Timestamp::default(),
            root_is_dated: false,
            used_bytes: 0,
            budget_bytes: MAX_TREE_BYTES,
        }
    }

    /// Says when the next entry was modified.
    pub fn begin_entry(&mut self, modified: Timestamp) {
        self.at_hand = modified;
        if !std::mem::replace(&mut self.root_is_dated, true) {
            let root = &mut self.folders[ROOT];
            (root.seconds, root.nanoseconds) = (modified.seconds, modified.nanoseconds);
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
            at = self.child(folder, component).ok_or(EntryFault::HardLinkTarget)?;
        }
        match at {
            Child::Leaf(leaf) => Ok(leaf),
            Child::Folder(_) => Err(EntryFault::HardLinkTarget),
        }
    }

    /// Gives a name to a new leaf.
    pub fn put_leaf(&mut self, folder: usize, name: &[u8], leaf: &Leaf) -> Result<(), EntryFault> {
        let target = leaf.target.as_deref().unwrap_or_default();
        self.charge(LEAF_BYTES + target.len())?;
        let target_bytes = u16::try_from(target.len()).map_err(|_| EntryFault::SymlinkTarget)?;
        let target_at = self.bytes.push(target);
        let stored = StoredLeaf { inode: leaf.inode, target_at, target_bytes, file_type: leaf.file_type };
        let index = self.leaves.push(stored);
        self.put_link(folder, name, index)
    }

    /// Gives a further name to a leaf.
    pub fn put_link(&mut self, folder: usize, name: &[u8], leaf: usize) -> Result<(), EntryFault> {
        let leaf = index_of(leaf);
        let node = self.node(folder, name)?;
        (node.kind, node.child) = (ChildKind::Leaf, leaf);
        Ok(())
    }

    /// Makes a folder, or changes what one says of itself.
    pub fn put_folder(&mut self, folder: usize, name: &[u8], facts: FolderFacts) -> Result<(), EntryFault> {
        self.charge(facts.xattrs.encoded_len() * 2)?;
        let index = match self.child(folder, name) {
            Some(Child::Folder(index)) => index,
            Some(Child::Leaf(_)) | None => self.make_folder(folder, name)?,
        };
        self.describe(index, facts);
        Ok(())
    }

    /// Changes what the root says of itself.
    pub fn put_root(&mut self, facts: FolderFacts) {
        self.describe(ROOT, facts);
    }

    fn describe(&mut self, index: usize, facts: FolderFacts) {
        let folder = &mut self.folders[index];
        let opaque = folder.opaque;
        *folder = Folder { opaque, ..Folder::new(folder.parent, folder.depth, facts) };
    }

    /// Hides a name of lower layers.
    pub fn hide(&mut self, folder: usize, name: &[u8]) -> Result<(), EntryFault> {
        self.node(folder, name)?.hidden = true;
        Ok(())
    }

    /// Hides everything of lower layers.
    pub fn hide_all(&mut self, folder: usize) {
        self.folders[folder].opaque = true;
    }

    /// Walks to a folder, following symbolic links, making what is missing.
    fn enter(&mut self, components: &[&[u8]]) -> Result<usize, EntryFault> {
        let mut rest: VecDeque<Vec<u8>> = components.iter().map(|component| component.to_vec()).collect();
        let (mut at, mut followed) = (ROOT, 0);
        while let Some(component) = rest.pop_front() {
            if component == b".." {
                at = self.folders[at].parent as usize;
                continue;
            }
            at = match self.child(at, &component) {
                Some(Child::Folder(folder)) => folder,
                None => self.make_folder(at, &component)?,
                Some(Child::Leaf(leaf)) => {
                    let target = self.target(leaf).ok_or(EntryFault::ParentNotFolder)?;
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

    /// Where a symbolic link leads.
    fn target(&self, leaf: usize) -> Option<&[u8]> {
        let leaf = &self.leaves[leaf];
        (leaf.target_bytes > 0).then(|| self.bytes.get(leaf.target_at, leaf.target_bytes.into()))
    }

    fn make_folder(&mut self, parent: usize, name: &[u8]) -> Result<usize, EntryFault> {
        let depth = self.folders[parent].depth + 1;
        if depth > MAX_DEPTH || name.len() > MAX_NAME_BYTES {
            return Err(EntryFault::PathTooLong);
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            return Err(EntryFault::Whiteout);
        }
        self.charge(FOLDER_BYTES)?;
        let facts = FolderFacts { modified: self.at_hand, ..FolderFacts::default() };
        let index = self.folders.push(Folder::new(index_of(parent), depth, facts));
        let node = self.node(parent, name)?;
        (node.kind, node.child) = (ChildKind::Folder, index_of(index));
        Ok(index)
    }

    fn child(&self, folder: usize, name: &[u8]) -> Option<Child> {
        let folder = index_of(folder);
        let hash = self.hasher.hash_one((folder, name));
        let node = self.table.find(hash, |node| self.is(*node, folder, name))?;
        self.nodes[*node as usize].child()
    }

    fn is(&self, node: u32, folder: u32, name: &[u8]) -> bool {
        let node = &self.nodes[node as usize];
        node.folder == folder && self.name(node) == name
    }

    fn name(&self, node: &Node) -> &[u8] {
        self.bytes.get(node.name_at, node.name_bytes.into())
    }

    /// The node of a name, made if there is none.
    fn node(&mut self, folder: usize, name: &[u8]) -> Result<&mut Node, EntryFault> {
        let folder = index_of(folder);
        let hash = self.hasher.hash_one((folder, name));
        let found = self.table.find(hash, |node| self.is(*node, folder, name)).copied();
        let index = match found {
            Some(index) => index,
            None => {
                let name_bytes = u8::try_from(name.len()).map_err(|_| EntryFault::PathTooLong)?;
                self.charge(NODE_BYTES + name.len())?;
                let name_at = self.bytes.push(name);
                let node = Node { name_at, folder, child: 0, name_bytes, kind: ChildKind::None, hidden: false };
                let index = index_of(self.nodes.push(node));
                let (nodes, bytes, hasher) = (&self.nodes, &self.bytes, &self.hasher);
                self.table.insert_unique(hash, index, |node| {
                    let node = &nodes[*node as usize];
                    hasher.hash_one((node.folder, bytes.get(node.name_at, node.name_bytes.into())))
                });
                index
            }
        };
        Ok(&mut self.nodes[index as usize])
    }

    fn charge(&mut self, bytes: usize) -> Result<(), EntryFault> {
        self.used_bytes += bytes;
        if self.used_bytes > self.budget_bytes { Err(EntryFault::LayerTooLarge) } else { Ok(()) }
    }
}

/// Memory bounds every index far below this.
fn index_of(index: usize) -> u32 {
    u32::try_from(index).expect("bounded by MAX_TREE_BYTES")
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
