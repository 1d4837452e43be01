//! From a layer's tar stream to its EROFS file, in one pass.

use std::fs::File;
use std::io::Read;

use proto::{Digest, ErrorKind};

use crate::compression::{Decompressed, Hashing, StreamRefusal};
use crate::erofs::{FileType, Inode, Place, WriteError, Writer, Xattrs};
use crate::folders;
use crate::limits::{Limits, MAX_LINK_BYTES, MAX_ROOT_XATTR_BYTES, MAX_XATTR_BYTES, MAX_XATTRS};
use crate::recipe::RecipeWriter;
use crate::tar::{Entry, EntryKind, Recorded, TarError, TarStream};
use crate::tree::{EntryFault, FolderFacts, Leaf, Place as Location, ROOT, Tree};
use crate::worker_fault::WorkerFault;

/// Names by which overlayfs steers itself: a layer that brought them along could redirect lookups.
const OVERLAY_XATTR_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// A layer that was not converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream is no tar stream, damaged, or cut off.
    #[error("the layer is not a valid tar stream")]
    Tar(#[from] TarError),
    /// The stream passes a bound or is compressed in a way that is not supported.
    #[error(transparent)]
    Refused(StreamRefusal),
    /// An entry of the stream is refused.
    #[error("the layer's entry {path:?} is refused")]
    Entry {
        /// Its path, cut to 200 characters.
        path: String,
        /// Why.
        #[source]
        fault: EntryFault,
    },
    /// More entries than the limit.
    #[error("the layer has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// The EROFS file cannot be written.
    #[error("cannot write the converted layer")]
    Write(#[source] std::io::Error),
    /// The result would be larger than EROFS can be.
    #[error("the layer is too large for one file system")]
    TooLarge,
    /// The process that should convert it did something else.
    #[error("the layer was not converted")]
    Worker(#[source] Box<WorkerFault>),
}

impl LayerError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Entry { fault: EntryFault::LayerTooLarge, .. } => ErrorKind::ResourceExhausted,
            Self::Tar(_) | Self::Entry { .. } => ErrorKind::InvalidArgument,
            Self::Refused(StreamRefusal::Unsupported { .. }) => ErrorKind::NotImplemented,
            Self::Worker(fault) => fault.kind(),
            Self::Refused(_) | Self::TooManyEntries { .. } | Self::TooLarge | Self::Write(_) => {
                ErrorKind::ResourceExhausted
            }
        }
    }

    pub(crate) fn from_read(error: std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<StreamRefusal>()) {
            Some(refusal) => Self::Refused(refusal.clone()),
            None => Self::Tar(TarError::Read(error)),
        }
    }

    fn from_tar(error: TarError) -> Self {
        match error {
            TarError::Read(error) => Self::from_read(error),
            other => Self::Tar(other),
        }
    }

    fn from_write(error: WriteError) -> Self {
        match error {
            WriteError::Input(error) => Self::from_read(error),
            WriteError::Output(error) => Self::Write(error),
            WriteError::TooLarge => Self::TooLarge,
        }
    }
}

/// What a conversion found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Converted {
    /// Digest of the uncompressed tar stream.
    pub diff_id: Digest,
    /// Sum of the lengths of the regular files, which is what Docker calls a layer's size.
    pub content_bytes: u64,
    /// Entries of the stream.
    pub entries: u64,
    /// Length of the EROFS file.
    pub file_bytes: u64,
    /// Hides all of the layers below: overlayfs ignores that sign on its root, so such layers must be left out.
    pub root_opaque: bool,
}

/// Converts the layer that `input` gives, compressed or not. Shape: `output` is empty and open for reading and writing;
/// its last bytes are not yet on the disk when this returns.
///
/// # Errors
/// As the variants of [`LayerError`] say; `output` then holds rubbish.
pub(crate) fn convert(input: impl Read, output: File, limits: &Limits) -> Result<Converted, LayerError> {
    let (stream, _) = Decompressed::new(input, limits, limits.layer_bytes).map_err(LayerError::from_read)?;
    convert_tar(Hashing::new(stream), output, limits, |source| Ok(source.finish()?.0))
}

/// As [`convert`], for a stream that is not compressed. Shape: `digest` gives the stream's digest when all of it was read.
pub(crate) fn convert_tar<R: Read>(
    source: R,
    output: File,
    limits: &Limits,
    digest: impl FnOnce(R) -> std::io::Result<Digest>,
) -> Result<Converted, LayerError> {
    let mut tar = TarStream::recording(source);
    let mut conversion = Conversion {
        tree: Tree::new(),
        writer: Writer::new(output).map_err(LayerError::from_write)?,
        recipe: RecipeWriter::new().map_err(LayerError::Write)?,
        content_bytes: 0,
        limits: *limits,
    };
    let mut entries = 0;
    while let Some(entry) = tar.next_entry().map_err(LayerError::from_tar)? {
        entries += 1;
        if entries > limits.layer_entries {
            return Err(LayerError::TooManyEntries { limit: limits.layer_entries });
        }
        conversion.record(&tar.take_recorded())?;
        let place = conversion.add(&entry, &mut tar)?;
        conversion.record_content(&tar.take_recorded(), place)?;
    }
    conversion.record(&tar.take_recorded())?;
    let (stream, zeros) = tar.finish().map_err(LayerError::from_tar)?;
    let diff_id = digest(stream).map_err(LayerError::from_read)?;
    conversion.finish(diff_id, entries, zeros)
}

/// The identity that a layer's superblock carries: the first half of its diffID.
pub(crate) fn layer_uuid(diff_id: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    hex::decode_to_slice(&diff_id.hex()[..32], &mut uuid).expect("a digest is hexadecimal");
    uuid
}

struct Conversion {
    tree: Tree,
    writer: Writer,
    recipe: RecipeWriter,
    content_bytes: u64,
    limits: Limits,
}

/// What all entries say alike, checked.
struct Facts {
    mode: u16,
    uid: u32,
    gid: u32,
    xattrs: Xattrs,
}

impl Conversion {
    fn record(&mut self, recorded: &Recorded) -> Result<(), LayerError> {
        self.recipe.literal(&recorded.literal, &mut self.writer).map_err(LayerError::from_write)
    }

    fn record_content(&mut self, recorded: &Recorded, place: Place) -> Result<(), LayerError> {
        self.recipe.content(&recorded.runs, &place, &mut self.writer).map_err(LayerError::from_write)
    }

    /// Adds an entry; gives where its content lies. Content that no file of the layer has is kept for the recipe alone.
    fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<Place, LayerError> {
        match self.add_to_tree(entry, content)? {
            Some(place) => Ok(place),
            None => {
                self.count_content(entry.size)?;
                self.writer.unnamed(entry.size, content).map_err(LayerError::from_write)
            }
        }
    }

    fn count_content(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        // A sparse file's holes cost no byte of the stream.
        match self.content_bytes > self.limits.layer_bytes {
            true => Err(LayerError::Refused(StreamRefusal::TooLong { limit: self.limits.layer_bytes })),
            false => Ok(()),
        }
    }

    fn add_to_tree(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<Option<Place>, LayerError> {
        let refuse =
            |fault| LayerError::Entry { path: String::from_utf8_lossy(&entry.path).chars().take(200).collect(), fault };
        let facts = Facts::of(entry).map_err(refuse)?;
        let whiteout_file = matches!(entry.kind, EntryKind::Regular | EntryKind::HardLink);
        self.tree.begin_entry(entry.modified);
        match self.tree.locate(&entry.path).map_err(refuse)? {
            Location::Ignored => Ok(None),
            Location::Root if entry.kind == EntryKind::Directory => {
                let folder = facts.into_folder(entry);
                if folder.xattrs.encoded_len() > MAX_ROOT_XATTR_BYTES {
                    return Err(refuse(EntryFault::Xattrs));
                }
                self.tree.put_root(folder);
                Ok(None)
            }
            Location::Root => Err(refuse(EntryFault::NotARoot)),
            Location::Whiteout { .. } | Location::Opaque { .. } if !whiteout_file => Err(refuse(EntryFault::Whiteout)),
            Location::Whiteout { folder, name } => {
                self.tree.hide(folder, &name).map_err(refuse)?;
                Ok(None)
            }
            Location::Opaque { folder } => {
                self.tree.hide_all(folder);
                Ok(None)
            }
            Location::Name { folder, name } if entry.kind == EntryKind::Directory => {
                self.tree.put_folder(folder, &name, facts.into_folder(entry)).map_err(refuse)?;
                Ok(None)
            }
            Location::Name { folder, name } if entry.kind == EntryKind::HardLink => {
                let leaf = self.tree.find_leaf(&entry.link).map_err(refuse)?;
                self.tree.put_link(folder, &name, leaf).map_err(refuse)?;
                Ok(None)
            }
            Location::Name { folder, name } => {
                let (leaf, place) = self.write_leaf(entry, &facts, content, refuse)?;
                self.tree.put_leaf(folder, &name, &leaf).map_err(refuse)?;
                Ok(place)
            }
        }
    }

    fn write_leaf(
        &mut self,
        entry: &Entry,
        facts: &Facts,
        content: &mut dyn Read,
        refuse: impl Fn(EntryFault) -> LayerError,
    ) -> Result<(Leaf, Option<Place>), LayerError> {
        let file_type = match entry.kind {
            EntryKind::Symlink => FileType::Symlink,
            EntryKind::CharacterDevice => FileType::CharacterDevice,
            EntryKind::BlockDevice => FileType::BlockDevice,
            EntryKind::Fifo => FileType::Fifo,
            EntryKind::Regular | EntryKind::HardLink | EntryKind::Directory => FileType::Regular,
        };
        let inode = facts.inode(file_type, entry);
        let mut target = None;
        let mut place = None;
        let inode = match file_type {
            FileType::Symlink => {
                check_link(&entry.link).map_err(refuse)?;
                target = Some(entry.link.clone().into_boxed_slice());
                self.writer.content(&inode, entry.link.len() as u64, &mut &entry.link[..]).map(|written| written.inode)
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let (major, minor) = device_numbers(entry).map_err(refuse)?;
                self.writer.device(&inode, major, minor)
            }
            FileType::Fifo => self.writer.device(&inode, 0, 0),
            FileType::Regular | FileType::Directory => {
                self.count_content(entry.size)?;
                self.writer.content(&inode, entry.size, content).map(|written| {
                    place = Some(written.place);
                    written.inode
                })
            }
        };
        Ok((Leaf { inode: inode.map_err(LayerError::from_write)?, file_type, target }, place))
    }

    /// Writes the folders, whose names are all known now, and the superblock.
    fn finish(mut self, diff_id: Digest, entries: u64, zeros: u64) -> Result<Converted, LayerError> {
        self.recipe.finish(zeros, &mut self.writer).map_err(LayerError::from_write)?;
        let tree = self.tree.settle();
        folders::write(&tree, &mut self.writer).map_err(LayerError::from_write)?;
        let file_bytes = self.writer.finish(layer_uuid(&diff_id)).map_err(LayerError::from_write)?;
        let root_opaque = tree.is_opaque(ROOT);
        Ok(Converted { diff_id, content_bytes: self.content_bytes, entries, file_bytes, root_opaque })
    }
}

impl Facts {
    fn of(entry: &Entry) -> Result<Self, EntryFault> {
        Ok(Self { mode: entry.mode, uid: owner(entry.uid)?, gid: owner(entry.gid)?, xattrs: xattrs_of(entry)? })
    }

    fn inode(&self, file_type: FileType, entry: &Entry) -> Inode<'_> {
        let (uid, gid, modified) = (self.uid, self.gid, entry.modified);
        Inode { file_type, mode: self.mode, uid, gid, modified, links: 1, xattrs: &self.xattrs }
    }

    fn into_folder(self, entry: &Entry) -> FolderFacts {
        FolderFacts { mode: self.mode, uid: self.uid, gid: self.gid, modified: entry.modified, xattrs: self.xattrs }
    }
}

/// 2^32 - 1 means "nobody" to chown(2) and is no owner.
fn owner(id: i64) -> Result<u32, EntryFault> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(EntryFault::Owner)
}

fn xattrs_of(entry: &Entry) -> Result<Xattrs, EntryFault> {
    let mut xattrs = Xattrs::default();
    if entry.xattrs.len() > MAX_XATTRS {
        return Err(EntryFault::Xattrs);
    }
    for (name, value) in &entry.xattrs {
        if name.len() > MAX_NAME_BYTES_OF_XATTR || name.contains(&0) {
            return Err(EntryFault::Xattrs);
        }
        if OVERLAY_XATTR_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        if value.len() + xattrs.encoded_len() > MAX_XATTR_BYTES {
            return Err(EntryFault::Xattrs);
        }
        if !xattrs.push(name, value) {
            tracing::debug!(name = %String::from_utf8_lossy(name), "attribute has no place in EROFS and is dropped");
        }
    }
    Ok(xattrs)
}

/// Source: Linux, `XATTR_NAME_MAX`.
const MAX_NAME_BYTES_OF_XATTR: usize = 255;

fn check_link(target: &[u8]) -> Result<(), EntryFault> {
    if target.is_empty() || target.len() > MAX_LINK_BYTES {
        return Err(EntryFault::SymlinkTarget);
    }
    if target.contains(&0) { Err(EntryFault::NulCharacter) } else { Ok(()) }
}

/// Linux has 12 bits of major and 20 bits of minor number.
fn device_numbers(entry: &Entry) -> Result<(u32, u32), EntryFault> {
    let (major, minor) = entry.device;
    let major = u32::try_from(major).ok().filter(|major| *major < 1 << 12);
    let minor = u32::try_from(minor).ok().filter(|minor| *minor < 1 << 20);
    match (major, minor) {
        (Some(0), Some(0)) if entry.kind == EntryKind::CharacterDevice => Err(EntryFault::Device),
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err(EntryFault::Device),
    }
}
