//! The on-disk structures. Source: Linux, fs/erofs/erofs_fs.h (all numbers are little-endian).

use std::iter::Peekable;

use crate::timestamp::Timestamp;

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Bytes of a block, as a file position.
pub(super) const BLOCK_BYTES: u64 = 4096;
const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// `SB_CHKSUM | MTIME`
const FEATURE_COMPAT: u32 = 3;
/// Bytes of an extended inode.
pub(super) const INODE: usize = 64;
/// Inodes begin at multiples of this; the number of an inode is its position divided by it.
pub(super) const INODE_SLOT: usize = 32;
/// Where the root's inode is: right behind the superblock.
pub(super) const ROOT_OFFSET: usize = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;
const DIRENT: usize = 12;
const XATTR_HEADER: usize = 12;

/// Where an inode's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// All in blocks.
    Plain,
    /// Whole blocks, and the rest behind the inode.
    Inline,
}

/// What a folder's entry says about an inode's type. Source: `FT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    CharacterDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// The type as the upper bits of a mode.
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharacterDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// What an inode says beside where its content is.
#[derive(Debug, Clone)]
pub(crate) struct Inode<'a> {
    pub file_type: FileType,
    /// Permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub modified: Timestamp,
    pub links: u32,
    pub xattrs: &'a Xattrs,
}

/// The fields of an inode that the writer finds out.
pub(super) struct InodeNumbers {
    pub layout: Layout,
    pub size: u64,
    /// First block of the content, or the device number.
    pub address: u32,
    pub number: u32,
}

impl Inode<'_> {
    pub(super) fn encode(&self, numbers: &InodeNumbers) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let format: u16 = match numbers.layout {
            Layout::Plain => 1,
            Layout::Inline => 1 | 2 << 1,
        };
        put(0, &format.to_le_bytes());
        put(2, &self.xattrs.count_field().to_le_bytes());
        put(4, &(self.file_type.mode_bits() | self.mode).to_le_bytes());
        put(8, &numbers.size.to_le_bytes());
        put(16, &numbers.address.to_le_bytes());
        put(20, &numbers.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.modified.seconds.to_le_bytes());
        put(40, &self.modified.nanoseconds.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }
}

/// Where the link count is in an inode.
pub(super) const INODE_LINKS_AT: u64 = 44;

/// The device number as the kernel stores it. Source: Linux, include/linux/kdev_t.h, `new_encode_dev`.
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The extended attributes of one inode, encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Xattrs(Vec<u8>);

impl Xattrs {
    /// No attributes.
    pub const NONE: Self = Self(Vec::new());

    /// Adds one. False: EROFS has no place for this name (it knows `user.`, `trusted.`, `security.` and POSIX ACLs).
    /// The caller bounds lengths: 255 bytes of name, 65,535 of value and in all.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> bool {
        let Some((index, rest)) = split_xattr_name(name) else { return false };
        let (Ok(name_length), Ok(value_length)) = (u8::try_from(rest.len()), u16::try_from(value.len())) else {
            return false;
        };
        self.0.extend([name_length, index]);
        self.0.extend(value_length.to_le_bytes());
        self.0.extend(rest);
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        true
    }

    /// Bytes of the entries, without header.
    pub fn encoded_len(&self) -> usize {
        self.0.len()
    }

    /// Bytes behind the inode.
    pub(super) fn body_len(&self) -> usize {
        if self.0.is_empty() { 0 } else { XATTR_HEADER + self.0.len() }
    }

    /// The bytes behind the inode: a header without shared attributes, then the entries.
    pub(super) fn body(&self) -> Vec<u8> {
        if self.0.is_empty() { Vec::new() } else { [&[0; XATTR_HEADER][..], &self.0].concat() }
    }

    /// `i_xattr_icount`: one for the header, one for every 4 bytes.
    fn count_field(&self) -> u16 {
        if self.0.is_empty() {
            return 0;
        }
        u16::try_from(self.0.len() / 4 + 1).expect("bounded by MAX_XATTR_BYTES plus the padding of MAX_XATTRS entries")
    }
}

fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole: [(&[u8], u8); 2] = [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];
    let prefixes: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    let exact = whole.iter().find(|(known, _)| *known == name).map(|(_, index)| (*index, &b""[..]));
    let by_prefix = |(prefix, index): &(&[u8], u8)| {
        name.strip_prefix(*prefix).filter(|rest| !rest.is_empty()).map(|rest| (*index, rest))
    };
    exact.or_else(|| prefixes.iter().find_map(by_prefix))
}

/// Bytes of the content of a folder with these names: whole blocks, the last one only as far as it is used. Shape: names in
/// bytewise order, `.` and `..` among them.
pub(crate) fn directory_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> usize {
    let (mut whole, mut used) = (0, 0);
    for name in names {
        let needed = DIRENT + name.len();
        if used + needed > BLOCK {
            whole += BLOCK;
            used = 0;
        }
        used += needed;
    }
    whole + used
}

/// The content of a folder, block by block, each whole but the last. Shape: entries in bytewise order of their names, `.`
/// and `..` among them.
pub(crate) struct DirectoryBlocks<I: Iterator> {
    entries: Peekable<I>,
}

impl<'a, I: Iterator<Item = (&'a [u8], u64, FileType)>> DirectoryBlocks<I> {
    pub fn new(entries: I) -> Self {
        Self { entries: entries.peekable() }
    }
}

impl<'a, I: Iterator<Item = (&'a [u8], u64, FileType)>> Iterator for DirectoryBlocks<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let (mut entries, mut used) = (Vec::new(), 0);
        while let Some(entry) = self.entries.next_if(|(name, _, _)| used + DIRENT + name.len() <= BLOCK) {
            used += DIRENT + entry.0.len();
            entries.push(entry);
        }
        if entries.is_empty() {
            return None;
        }
        let mut content = Vec::with_capacity(BLOCK);
        let mut name_at = entries.len() * DIRENT;
        for (name, inode, file_type) in &entries {
            content.extend(inode.to_le_bytes());
            content.extend(u16::try_from(name_at).expect("inside a block").to_le_bytes());
            content.extend([*file_type as u8, 0]);
            name_at += name.len();
        }
        entries.iter().for_each(|(name, _, _)| content.extend(*name));
        if self.entries.peek().is_some() {
            content.resize(BLOCK, 0);
        }
        Some(content)
    }
}

/// What the superblock says.
pub(super) struct Superblock {
    pub inodes: u64,
    pub blocks: u32,
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Writes the superblock into the first block, which holds the root's inode already, and its checksum.
    pub fn seal(&self, block: &mut [u8]) {
        let root = u16::try_from(ROOT_OFFSET / INODE_SLOT).expect("the root is in the first block");
        let mut put = |at: usize, value: &[u8]| {
            let at = SUPERBLOCK_OFFSET + at;
            block[at..at + value.len()].copy_from_slice(value);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &FEATURE_COMPAT.to_le_bytes());
        put(12, &[12]);
        put(14, &root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(48, &self.uuid);
        let checksum = checksum(block);
        block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC-32C of the block from the superblock on, its checksum field zero, without the final inversion.
fn checksum(block: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in block.iter().enumerate().skip(SUPERBLOCK_OFFSET) {
        let byte = if (SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8).contains(&at) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    crc
}

/// What is wrong with the first block of a file that should be a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockFault {
    /// No EROFS of ours.
    #[error("no superblock")]
    Magic,
    /// Something in the first block changed.
    #[error("wrong checksum of the superblock")]
    Checksum,
    /// Another layer's.
    #[error("superblock of another layer")]
    Identity,
    /// Cut off or grown.
    #[error("the length differs from the superblock's")]
    Length,
}

/// Checks the first block of a file of `bytes` bytes that should hold the layer with this uuid.
pub(crate) fn read_superblock(block: &[u8; BLOCK], uuid: [u8; 16], bytes: u64) -> Result<(), SuperblockFault> {
    let field = |at: usize| {
        let at = SUPERBLOCK_OFFSET + at;
        u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
    };
    if field(0) != MAGIC {
        return Err(SuperblockFault::Magic);
    }
    if field(4) != checksum(block) {
        return Err(SuperblockFault::Checksum);
    }
    if block[SUPERBLOCK_OFFSET + 48..SUPERBLOCK_OFFSET + 64] != uuid {
        return Err(SuperblockFault::Identity);
    }
    if u64::from(field(36)) * BLOCK_BYTES != bytes {
        return Err(SuperblockFault::Length);
    }
    Ok(())
}
