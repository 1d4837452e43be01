//! A layer's names when everything has passed: sorted, reachable, final.

use std::iter::once;

use super::arena::{Arena, Bytes};
use super::{Child, ChildKind, Folder, FolderFacts, Node, ROOT, StoredLeaf, Tree, index_of};
use crate::erofs::{FileType, Xattrs};
use crate::timestamp::Timestamp;

const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// What a name in a folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// `.` or `..`.
    Itself(usize),
    Child(Child),
    /// A whiteout.
    Hidden,
}

/// The names of one layer, complete.
pub(crate) struct Settled {
    folders: Arena<Folder>,
    leaves: Arena<StoredLeaf>,
    nodes: Arena<Node>,
    bytes: Bytes,
    /// Nodes that stand for something, by folder and then bytewise by name.
    sorted: Vec<u32>,
    /// Where each folder's nodes begin in `sorted`, and a last one where they end.
    starts: Vec<u32>,
    /// Folders that can be reached from the root, it first, parents before children.
    order: Vec<u32>,
}

impl Tree {
    /// When everything has passed: puts the names in order, and makes opaque what replaces a hidden folder.
    pub fn settle(self) -> Settled {
        let Self { folders, leaves, nodes, bytes, table, .. } = self;
        drop(table);
        let name = |node: u32| {
            let node = &nodes[node as usize];
            (node.folder, bytes.get(node.name_at, node.name_bytes.into()))
        };
        let mut starts = vec![0; folders.len() + 1];
        nodes.iter().for_each(|node| starts[node.folder as usize + 1] += 1);
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let mut sorted: Vec<u32> = (0..index_of(nodes.len())).collect();
        sorted.sort_unstable_by(|a, b| name(*a).cmp(&name(*b)));
        let mut settled = Settled { folders, leaves, nodes, bytes, sorted, starts, order: vec![index_of(ROOT)] };
        settled.walk();
        settled
    }
}

impl Settled {
    fn walk(&mut self) {
        let mut next = 0;
        while let Some(&index) = self.order.get(next) {
            for at in self.range(index as usize) {
                let node = &self.nodes[self.sorted[at] as usize];
                if node.kind == ChildKind::Folder {
                    self.order.push(node.child);
                    self.folders[node.child as usize].opaque |= node.hidden;
                }
            }
            next += 1;
        }
        for at in 0..self.order.len() {
            let folder = &mut self.folders[self.order[at] as usize];
            if folder.opaque {
                folder.xattrs.get_or_insert_default().push(OPAQUE_XATTR, b"y");
            }
        }
    }

    /// The folders that can be reached from the root, it first, parents before children.
    pub fn order(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.order.iter().map(|index| *index as usize)
    }

    /// How many folders there are, reachable or not; each has a number below this.
    pub fn folder_count(&self) -> usize {
        self.folders.len()
    }

    /// True if the folder hides everything that lower layers have in it.
    pub fn is_opaque(&self, folder: usize) -> bool {
        self.folders[folder].opaque
    }

    /// What a folder says of itself; the attributes stand apart.
    pub fn facts(&self, folder: usize) -> (FolderFacts, &Xattrs) {
        static NONE: Xattrs = Xattrs::NONE;
        let folder = &self.folders[folder];
        let modified = Timestamp { seconds: folder.seconds, nanoseconds: folder.nanoseconds };
        let (mode, uid, gid) = (folder.mode, folder.uid, folder.gid);
        let facts = FolderFacts { mode, uid, gid, modified, xattrs: Xattrs::NONE };
        (facts, folder.xattrs.as_deref().unwrap_or(&NONE))
    }

    /// A folder's names in bytewise order, `.` and `..` among them.
    pub fn names(&self, folder: usize) -> impl Iterator<Item = (&[u8], Target)> {
        let nodes = &self.sorted[self.range(folder)];
        let name = |node: &u32| self.name(*node);
        let dot = nodes.partition_point(|node| name(node) < b"." as &[u8]);
        let dots = nodes.partition_point(|node| name(node) < b".." as &[u8]);
        let itself = once((&b"."[..], Target::Itself(folder)));
        let parent = once((&b".."[..], Target::Itself(self.folders[folder].parent as usize)));
        let named = |nodes| self.targets(nodes);
        named(&nodes[..dot]).chain(itself).chain(named(&nodes[dot..dots])).chain(parent).chain(named(&nodes[dots..]))
    }

    fn targets<'t>(&'t self, nodes: &'t [u32]) -> impl Iterator<Item = (&'t [u8], Target)> {
        nodes.iter().filter_map(|index| {
            let node = &self.nodes[*index as usize];
            let target = node.child().map(Target::Child).or(node.hidden.then_some(Target::Hidden));
            target.map(|target| (self.name(*index), target))
        })
    }

    /// Where a leaf was written.
    pub fn leaf(&self, leaf: usize) -> (u64, FileType) {
        (self.leaves[leaf].inode, self.leaves[leaf].file_type)
    }

    /// How many leaves there are, named or not; each has a number below this.
    pub fn leaf_count(&self) -> usize {
        self.leaves.len()
    }

    fn name(&self, node: u32) -> &[u8] {
        let node = &self.nodes[node as usize];
        self.bytes.get(node.name_at, node.name_bytes.into())
    }

    fn range(&self, folder: usize) -> std::ops::Range<usize> {
        self.starts[folder] as usize..self.starts[folder + 1] as usize
    }
}
