//! Writing a layer's folders, when all of its names are known.

use crate::erofs::{
    DirectoryBlocks, DirectoryPlace, FileType, Inode, WriteError, Writer, Xattrs, directory_size, whiteout,
};
use crate::tree::{Child, ROOT, Settled, Target};

/// Writes all folders that can be reached, with what their names stand for.
pub(crate) fn write(tree: &Settled, writer: &mut Writer) -> Result<(), WriteError> {
    let hidden = write_whiteout(tree, writer)?;
    settle_links(tree, writer)?;
    let mut places = vec![DirectoryPlace::default(); tree.folder_count()];
    for index in tree.order() {
        let size = directory_size(tree.names(index).map(|(name, _)| name));
        let (_, xattrs) = tree.facts(index);
        places[index] = match index {
            ROOT => writer.place_root(size, xattrs)?,
            _ => writer.place_directory(size, xattrs)?,
        };
    }
    for index in tree.order() {
        let mut subfolders = 0_u32;
        let size = directory_size(tree.names(index).map(|(name, target)| {
            subfolders += u32::from(matches!(target, Target::Child(Child::Folder(_))));
            name
        }));
        let entries = tree.names(index).map(|(name, target)| match target {
            Target::Itself(folder) | Target::Child(Child::Folder(folder)) => {
                (name, places[folder].inode, FileType::Directory)
            }
            Target::Child(Child::Leaf(leaf)) => {
                let (inode, file_type) = tree.leaf(leaf);
                (name, inode, file_type)
            }
            Target::Hidden => (name, hidden, FileType::CharacterDevice),
        });
        let (facts, xattrs) = tree.facts(index);
        let inode = Inode {
            file_type: FileType::Directory,
            mode: facts.mode,
            uid: facts.uid,
            gid: facts.gid,
            modified: facts.modified,
            links: subfolders.checked_add(2).ok_or(WriteError::TooLarge)?,
            xattrs,
        };
        writer.fill(&places[index], &inode, size, DirectoryBlocks::new(entries))?;
    }
    Ok(())
}

/// Writes the one inode that all whiteouts of the layer share; 0 if there are none.
fn write_whiteout(tree: &Settled, writer: &mut Writer) -> Result<u64, WriteError> {
    let hidden = |index| tree.names(index).filter(|(_, target)| *target == Target::Hidden).count();
    let count: usize = tree.order().map(hidden).sum();
    if count == 0 {
        return Ok(0);
    }
    let no_xattrs = Xattrs::default();
    let links = u32::try_from(count).map_err(|_| WriteError::TooLarge)?;
    writer.device(&Inode { links, ..whiteout(&no_xattrs) }, 0, 0)
}

/// Corrects the link count of leaves that have not exactly one name.
fn settle_links(tree: &Settled, writer: &mut Writer) -> Result<(), WriteError> {
    let mut links = vec![0_u32; tree.leaf_count()];
    for (_, target) in tree.order().flat_map(|index| tree.names(index)) {
        if let Target::Child(Child::Leaf(leaf)) = target {
            links[leaf] += 1;
        }
    }
    for (leaf, count) in links.into_iter().enumerate().filter(|(_, count)| *count > 1) {
        writer.set_links(tree.leaf(leaf).0, count)?;
    }
    Ok(())
}
