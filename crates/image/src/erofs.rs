//! Writing EROFS, the read-only file system that layers are mounted as.
//!
//! ```text
//! block 0            1024 superblock · 1152 root inode (its number must fit 16 bits), its attributes, its last names
//! blocks 1..         in the order of the tar stream: content of files in whole blocks, and between them metadata
//!                    blocks with inodes, each followed by its attributes and the tail of its content
//! in between         blocks that no inode names: the layer's recipe (see `recipe.rs`)
//! at the end         folders, whose names are known only then
//! ```
//!
//! One pass: inodes of files are written as soon as their content has passed, so that memory holds names only. Nothing
//! depends on a clock or on chance: equal streams give equal bytes.
//! Source: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Features: 4096-byte blocks, uncompressed,
//! plain and inline layout, 64-byte inodes, inline attributes, checksummed superblock; any Linux from 5.4 on reads it.

mod format;
mod output;
mod writer;

pub(crate) use format::{DirectoryBlocks, FileType, Inode, Xattrs, directory_size};
pub(crate) use writer::{DirectoryPlace, Place, WriteError, Writer, whiteout};

pub use format::SuperblockFault;
pub(crate) use format::read_superblock;

#[cfg(test)]
mod tests;
