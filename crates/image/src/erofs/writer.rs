//! Places inodes and content.

use std::fs::File;
use std::io::{self, Read};

use super::format::{
    BLOCK, BLOCK_BYTES, FileType, INODE, INODE_LINKS_AT, INODE_SLOT, Inode, InodeNumbers, Layout, ROOT_OFFSET,
    Superblock, Xattrs, encode_device,
};
use super::output::{CopyError, Output};

/// Metadata blocks that are filled at the same time; the fullest one that has room is taken.
const OPEN_BLOCKS: usize = 16;

/// Bytes at the beginning of the file that EROFS does not use.
const HEAD: usize = 1024;

/// Where content lies in the file: whole blocks in a row, and the rest somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// File position of the first part.
    pub blocks_at: u64,
    /// Bytes of the first part.
    pub in_blocks: u64,
    /// File position of the rest, if there is one.
    pub tail_at: u64,
}

/// A file or symbolic link that was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    /// The inode's number.
    pub inode: u64,
    pub place: Place,
}

/// A file system that could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The content's source failed.
    #[error("cannot read the content")]
    Input(#[source] io::Error),
    /// The file cannot be written.
    #[error("cannot write the file system")]
    Output(#[from] io::Error),
    /// More than 2^32 blocks or inodes.
    #[error("the file system is too large")]
    TooLarge,
}

impl From<CopyError> for WriteError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Input(error) => Self::Input(error),
            CopyError::Output(error) => Self::Output(error),
        }
    }
}

/// The number of the root's inode, whose place is fixed.
const ROOT_INODE: u64 = (ROOT_OFFSET / INODE_SLOT) as u64;

/// A metadata block that has room left.
struct OpenBlock {
    address: u64,
    used: usize,
    bytes: Box<[u8; BLOCK]>,
}

/// Where a folder will be: known before its content is, because folders name each other.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DirectoryPlace {
    /// The number of its inode.
    pub inode: u64,
    /// File position of the whole blocks.
    blocks_at: u64,
}

/// How a folder's content lies: its layout, and how much of it is in whole blocks.
fn directory_layout(size: usize, head: usize) -> (Layout, usize) {
    let tail = size % BLOCK;
    if tail > 0 && head + tail <= BLOCK { (Layout::Inline, size - tail) } else { (Layout::Plain, size) }
}

/// Writes one file system. When: any number of files, links and devices in any order; then every folder is placed
/// (the root by [`Writer::place_root`]); then every folder is filled; then [`Writer::finish`].
pub(crate) struct Writer {
    output: Output,
    open: Vec<OpenBlock>,
    inodes: u32,
}

impl Writer {
    /// `file` is empty and open for reading and writing.
    pub fn new(file: File) -> Result<Self, WriteError> {
        let mut output = Output::new(file);
        output.push_zeros(BLOCK_BYTES)?;
        Ok(Self { output, open: Vec::new(), inodes: 0 })
    }

    /// Writes a file or a symbolic link with its content.
    pub fn content(&mut self, inode: &Inode<'_>, size: u64, input: &mut dyn Read) -> Result<Content, WriteError> {
        let tail = usize::try_from(size % BLOCK_BYTES).expect("less than a block");
        let inline = tail > 0 && INODE + inode.xattrs.body_len() + tail <= BLOCK;
        let blocks_at = self.output.position();
        let address = self.block_at(blocks_at)?;
        let mut tail_bytes = [0; BLOCK];
        let layout = if inline {
            self.output.copy_from(input, size - tail as u64)?;
            input.read_exact(&mut tail_bytes[..tail]).map_err(WriteError::Input)?;
            Layout::Inline
        } else {
            self.output.copy_from(input, size)?;
            self.output.pad_to_block()?;
            Layout::Plain
        };
        let numbers = InodeNumbers { layout, size, address, number: self.next_inode()? };
        let inline_tail = if inline { &tail_bytes[..tail] } else { &[] };
        let number = self.record(&inode.encode(&numbers), inode.xattrs, inline_tail)?;
        let tail_at = number * INODE_SLOT as u64 + (INODE + inode.xattrs.body_len()) as u64;
        let in_blocks = size - inline_tail.len() as u64;
        Ok(Content { inode: number, place: Place { blocks_at, in_blocks, tail_at } })
    }

    /// Writes bytes into blocks of their own that no inode names; gives their place.
    pub fn unnamed(&mut self, size: u64, input: &mut dyn Read) -> Result<Place, WriteError> {
        let blocks_at = self.output.position();
        self.output.copy_from(input, size)?;
        self.output.pad_to_block()?;
        // The address must be one that the file system could have.
        self.block_at(self.output.position())?;
        Ok(Place { blocks_at, in_blocks: size, tail_at: 0 })
    }

    /// Writes the first bytes of the first block, of which EROFS leaves 1024 to whoever wants them.
    pub fn set_head(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        assert!(bytes.len() <= HEAD, "the superblock follows");
        self.output.overwrite(0, bytes).map_err(Into::into)
    }

    /// Writes a device, or a pipe (whose numbers are 0); gives the inode's number.
    pub fn device(&mut self, inode: &Inode<'_>, major: u32, minor: u32) -> Result<u64, WriteError> {
        let address = encode_device(major, minor);
        let numbers = InodeNumbers { layout: Layout::Plain, size: 0, address, number: self.next_inode()? };
        self.record(&inode.encode(&numbers), inode.xattrs, &[])
    }

    /// Says how many names an inode turned out to have.
    pub fn set_links(&mut self, inode: u64, links: u32) -> Result<(), WriteError> {
        self.write_at(inode * INODE_SLOT as u64 + INODE_LINKS_AT, &links.to_le_bytes()).map_err(Into::into)
    }

    /// Reserves the root's place for a content of `size` bytes. The root's attributes fit the first block with its inode.
    pub fn place_root(&mut self, size: usize, xattrs: &Xattrs) -> Result<DirectoryPlace, WriteError> {
        let (_, in_blocks) = directory_layout(size, ROOT_OFFSET + INODE + xattrs.body_len());
        let blocks_at = self.place_blocks(in_blocks)?;
        Ok(DirectoryPlace { inode: ROOT_INODE, blocks_at })
    }

    /// Reserves a folder's place for a content of `size` bytes.
    pub fn place_directory(&mut self, size: usize, xattrs: &Xattrs) -> Result<DirectoryPlace, WriteError> {
        let head = INODE + xattrs.body_len();
        let (_, in_blocks) = directory_layout(size, head);
        let blocks_at = self.place_blocks(in_blocks)?;
        let offset = self.reserve(head + size - in_blocks.min(size))?;
        Ok(DirectoryPlace { inode: offset / INODE_SLOT as u64, blocks_at })
    }

    fn place_blocks(&mut self, bytes: usize) -> Result<u64, WriteError> {
        let blocks_at = self.output.position();
        self.output.push_zeros((bytes as u64).next_multiple_of(BLOCK_BYTES))?;
        Ok(blocks_at)
    }

    /// Writes a folder into its place. Shape: `blocks` are together as long as the `size` that was placed, each whole but
    /// the last.
    pub fn fill(
        &mut self,
        place: &DirectoryPlace,
        inode: &Inode<'_>,
        size: usize,
        blocks: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), WriteError> {
        let before = if place.inode == ROOT_INODE { ROOT_OFFSET } else { 0 };
        let (layout, in_blocks) = directory_layout(size, before + INODE + inode.xattrs.body_len());
        let (mut written, mut tail) = (0, Vec::new());
        for block in blocks {
            if written < in_blocks {
                self.output.overwrite(place.blocks_at + written as u64, &block)?;
            } else {
                tail.extend_from_slice(&block);
            }
            written += block.len();
        }
        assert_eq!(written, size, "a folder's size is settled when it is placed");
        let numbers = InodeNumbers {
            layout,
            size: size as u64,
            address: self.block_at(place.blocks_at)?,
            number: self.next_inode()?,
        };
        let record = [&inode.encode(&numbers)[..], &inode.xattrs.body(), &tail].concat();
        self.write_at(place.inode * INODE_SLOT as u64, &record)?;
        Ok(())
    }

    /// Writes the superblock; gives the file's length, a multiple of 4096.
    pub fn finish(mut self, uuid: [u8; 16]) -> Result<u64, WriteError> {
        for block in std::mem::take(&mut self.open) {
            self.output.overwrite(block.address, &block.bytes[..])?;
        }
        let bytes = self.output.position();
        let superblock = Superblock { inodes: u64::from(self.inodes), blocks: self.block_at(bytes)?, uuid };
        self.output.with_first_block(|block| superblock.seal(block))?;
        Ok(bytes)
    }

    fn next_inode(&mut self) -> Result<u32, WriteError> {
        self.inodes = self.inodes.checked_add(1).ok_or(WriteError::TooLarge)?;
        Ok(self.inodes)
    }

    fn block_at(&self, position: u64) -> Result<u32, WriteError> {
        u32::try_from(position / BLOCK_BYTES).map_err(|_| WriteError::TooLarge)
    }

    /// Writes an inode with what follows it; gives its number.
    fn record(&mut self, inode: &[u8; INODE], xattrs: &Xattrs, tail: &[u8]) -> Result<u64, WriteError> {
        let record = [&inode[..], &xattrs.body(), tail].concat();
        let offset = self.reserve(record.len())?;
        self.write_at(offset, &record)?;
        Ok(offset / INODE_SLOT as u64)
    }

    /// Finds room for a record. Up to a block it never crosses from one block to the next, as inline content must not.
    fn reserve(&mut self, bytes: usize) -> Result<u64, WriteError> {
        if bytes > BLOCK {
            let offset = self.output.position();
            self.output.push_zeros((bytes as u64).next_multiple_of(BLOCK_BYTES))?;
            return Ok(offset);
        }
        let fits = |block: &OpenBlock| BLOCK - block.used >= bytes;
        let fullest = self.open.iter().enumerate().filter(|(_, block)| fits(block)).max_by_key(|(_, block)| block.used);
        let index = match fullest {
            Some((index, _)) => index,
            None => self.open_block()?,
        };
        let block = &mut self.open[index];
        let offset = block.address + block.used as u64;
        block.used = (block.used + bytes).next_multiple_of(INODE_SLOT);
        Ok(offset)
    }

    /// Opens a metadata block, after closing the fullest if there are too many.
    fn open_block(&mut self) -> Result<usize, WriteError> {
        if self.open.len() == OPEN_BLOCKS
            && let Some((index, _)) = self.open.iter().enumerate().max_by_key(|(_, block)| block.used)
        {
            let full = self.open.swap_remove(index);
            self.output.overwrite(full.address, &full.bytes[..])?;
        }
        let address = self.output.position();
        self.output.push_zeros(BLOCK_BYTES)?;
        self.open.push(OpenBlock { address, used: 0, bytes: Box::new([0; BLOCK]) });
        Ok(self.open.len() - 1)
    }

    fn write_at(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let holds = |block: &&mut OpenBlock| (block.address..block.address + BLOCK_BYTES).contains(&position);
        match self.open.iter_mut().find(holds) {
            Some(block) => {
                let at = usize::try_from(position - block.address).expect("less than a block");
                block.bytes[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => self.output.overwrite(position, bytes),
        }
    }
}

/// The inode of a whiteout: a character device 0:0. Source: Linux, Documentation/filesystems/overlayfs.rst.
pub(crate) fn whiteout(xattrs: &Xattrs) -> Inode<'_> {
    let modified = crate::timestamp::Timestamp::default();
    Inode { file_type: FileType::CharacterDevice, mode: 0, uid: 0, gid: 0, modified, links: 1, xattrs }
}
