//! Disks for the slots, and the packing of many layers onto one disk without copying them.
//!
//! A packed disk is a list of extents: a generated head (protective MBR and GPT), the layer files themselves, a
//! generated tail (backup GPT). A VMDK descriptor of flat extents tells QEMU to show them as one disk. Partition `i`
//! is layer `i`, lowest first, from 1.
//!
//! Source: UEFI 2.10 §5.3 (GPT), VMware Virtual Disk Format 1.1 (descriptor of flat extents).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proto::ErrorKind;

/// Bytes of a sector in GPT and VMDK.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Alignment of layers: the host's page and EROFS block.
const LAYER_ALIGNMENT: u64 = 4096;
/// Linux looks at up to 255 of them. Source: Linux block/partitions/efi.c, include/linux/genhd.h `DISK_MAX_PARTS`.
const ENTRIES: usize = 256;
const ENTRY_BYTES: usize = 128;
/// The same numbers as the header's fields have them.
const ENTRIES_U32: u32 = 256;
const ENTRY_BYTES_U32: u32 = 128;
const TABLE_SECTORS: u64 = 64;
/// Sectors before the first layer: MBR, header, table, and padding to a multiple of 4096 bytes.
const HEAD_SECTORS: u64 = 72;
/// Sectors behind the last layer: table and header, padded likewise.
const TAIL_SECTORS: u64 = 72;
/// As many layers as one packed disk can hold; Docker allows 125.
pub(crate) const MOST_LAYERS: usize = ENTRIES - 1;

/// What is wrong with a disk for a slot.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("cannot open the disk {}", .path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no disk.
    #[error("{} cannot be a disk: {reason}", .path.display())]
    Unfit {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The number of layers is none or too large.
    #[error("a utility VM takes 1 to {MOST_LAYERS} layers, not {0}")]
    LayerCount(usize),
    /// The generated parts of a packed disk cannot be written.
    #[error("cannot write the table of a packed disk")]
    Pack(#[source] io::Error),
}

impl DiskError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Open { .. } | Self::Pack(_) => ErrorKind::Internal,
            Self::Unfit { .. } | Self::LayerCount(_) => ErrorKind::InvalidArgument,
        }
    }
}

/// A disk to bind to a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBinding {
    /// A regular file.
    pub path: PathBuf,
    /// Enforced by the host's device, not by the guest.
    pub read_only: bool,
}

/// An opened file behind a slot, and how long it is.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// It has no name: what is in it is lost with the last process that has it, and need not get to the host's disk before.
    pub(crate) is_unnamed: bool,
}

impl DiskFile {
    /// Opens what `binding` names. Only regular files become disks: nothing "behind a path" can be the host's own device.
    pub(crate) fn open(binding: &DiskBinding) -> Result<Self, DiskError> {
        let path = &binding.path;
        let file = File::options()
            .read(true)
            .write(!binding.read_only)
            .open(path)
            .map_err(|source| DiskError::Open { path: path.clone(), source })?;
        let metadata = file.metadata().map_err(|source| DiskError::Open { path: path.clone(), source })?;
        let unfit = |reason: &str| DiskError::Unfit { path: path.clone(), reason: reason.to_owned() };
        if !metadata.is_file() {
            return Err(unfit("it is not a regular file"));
        }
        match metadata.len() {
            0 => Err(unfit("it is empty")),
            bytes if bytes % SECTOR_BYTES != 0 => Err(unfit("its length is no multiple of 512 bytes")),
            bytes if bytes > crate::machine::NOMINAL_DISK_BYTES => Err(unfit("it is longer than a slot's capacity")),
            bytes => Ok(Self { file, bytes, is_unnamed: metadata.nlink() == 0 }),
        }
    }
}

/// What is behind one slot of a fork.
#[derive(Debug)]
pub(crate) enum SlotDisk {
    /// One file.
    Plain { disk: DiskFile, read_only: bool },
    /// Many layers as partitions of one read-only disk.
    Packed(PackedDisk),
}

/// Layers packed as partitions of one disk: the layer files and the generated parts around them.
#[derive(Debug)]
pub(crate) struct PackedDisk {
    pub(crate) head: Vec<u8>,
    pub(crate) layers: Vec<DiskFile>,
    pub(crate) tail: Vec<u8>,
}

impl PackedDisk {
    /// Packs `paths`, lowest layer first.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self, DiskError> {
        if paths.is_empty() || paths.len() > MOST_LAYERS {
            return Err(DiskError::LayerCount(paths.len()));
        }
        let layers: Vec<DiskFile> = paths.iter().map(|path| open_layer(path)).collect::<Result<_, _>>()?;
        let lengths: Vec<u64> = layers.iter().map(|layer| layer.bytes).collect();
        let (head, tail) = partition_table(&lengths);
        Ok(Self { head, layers, tail })
    }

    /// The VMDK descriptor for extents whose names QEMU can open: head, each layer, tail, in this order.
    pub(crate) fn descriptor(&self, names: &[String]) -> String {
        let lengths = std::iter::once(self.head.len() as u64)
            .chain(self.layers.iter().map(|layer| layer.bytes))
            .chain(std::iter::once(self.tail.len() as u64));
        let extents: String = lengths
            .zip(names)
            .map(|(bytes, name)| format!("RW {} FLAT \"{name}\" 0\n", bytes / SECTOR_BYTES))
            .collect();
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n\
             # Extent description\n{extents}\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n"
        )
    }
}

fn open_layer(path: &Path) -> Result<DiskFile, DiskError> {
    let layer = DiskFile::open(&DiskBinding { path: path.to_owned(), read_only: true })?;
    if layer.bytes % LAYER_ALIGNMENT == 0 {
        return Ok(layer);
    }
    Err(DiskError::Unfit { path: path.to_owned(), reason: "a layer's length is a multiple of 4096 bytes".into() })
}

/// Head and tail of a disk whose partitions have these lengths (multiples of 4096 bytes), one after the other.
fn partition_table(lengths: &[u64]) -> (Vec<u8>, Vec<u8>) {
    let mut table = vec![0; ENTRIES * ENTRY_BYTES];
    let mut first = HEAD_SECTORS;
    for (number, (&bytes, entry)) in lengths.iter().zip(table.chunks_exact_mut(ENTRY_BYTES)).enumerate() {
        let last = first + bytes / SECTOR_BYTES - 1;
        entry[..16].copy_from_slice(&LINUX_DATA);
        entry[16..32].copy_from_slice(&guid(number as u64 + 1));
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        first = last + 1;
    }
    let layout = Layout { data_end: first, total: first + TAIL_SECTORS, table_crc: crc32(&table) };
    let mut head = vec![0; sectors(HEAD_SECTORS)];
    head[..sectors(1)].copy_from_slice(&protective_mbr());
    head[sectors(1)..sectors(2)].copy_from_slice(&layout.header(1, layout.total - 1, 2));
    head[sectors(2)..sectors(2 + TABLE_SECTORS)].copy_from_slice(&table);
    let mut tail = vec![0; sectors(TAIL_SECTORS)];
    let table_at = TAIL_SECTORS - 1 - TABLE_SECTORS;
    tail[sectors(table_at)..sectors(table_at + TABLE_SECTORS)].copy_from_slice(&table);
    let backup = layout.header(layout.total - 1, 1, layout.total - 1 - TABLE_SECTORS);
    tail[sectors(TAIL_SECTORS - 1)..].copy_from_slice(&backup);
    (head, tail)
}

/// Bytes of so many sectors of the head or the tail, which are a few pages.
fn sectors(count: u64) -> usize {
    usize::try_from(count * SECTOR_BYTES).expect("head and tail are a few pages")
}

/// Type "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, in GPT's mixed byte order.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// An identifier that need only differ within one disk.
fn guid(number: u64) -> [u8; 16] {
    let mut bytes = *b"bulkhead\0\0\0\0\0\0\0\0";
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn protective_mbr() -> [u8; 512] {
    let mut mbr = [0; 512];
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// Where things are on a packed disk, in sectors.
struct Layout {
    data_end: u64,
    total: u64,
    table_crc: u32,
}

impl Layout {
    fn header(&self, own: u64, other: u64, table: u64) -> [u8; 512] {
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&own.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[40..48].copy_from_slice(&HEAD_SECTORS.to_le_bytes());
        header[48..56].copy_from_slice(&(self.data_end - 1).to_le_bytes());
        header[56..72].copy_from_slice(&guid(0));
        header[72..80].copy_from_slice(&table.to_le_bytes());
        header[80..84].copy_from_slice(&ENTRIES_U32.to_le_bytes());
        header[84..88].copy_from_slice(&ENTRY_BYTES_U32.to_le_bytes());
        header[88..92].copy_from_slice(&self.table_crc.to_le_bytes());
        let crc = crc32(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    }
}

/// CRC-32 as in UEFI and zlib.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn crc32_is_the_one_of_zlib() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_table_names_every_layer_and_both_headers_check() {
        let lengths = [4096, 8192, 1 << 20];
        let (head, tail) = partition_table(&lengths);
        let data: u64 = lengths.iter().sum();
        let disk: Vec<u8> = [head, vec![0; usize::try_from(data).unwrap()], tail].concat();
        let last = disk.len() as u64 / 512 - 1;
        for (own, other) in [(1, last), (last, 1)] {
            let at = usize::try_from(own).unwrap() * 512;
            let mut header = disk[at..at + 512].to_vec();
            let crc = u32_at(&header, 16);
            header[16..20].fill(0);
            assert_eq!((&header[..8], crc), (&b"EFI PART"[..], crc32(&header[..92])));
            assert_eq!((u64_at(&header, 24), u64_at(&header, 32)), (own, other));
            let table = usize::try_from(u64_at(&header, 72)).unwrap() * 512;
            assert_eq!(u32_at(&header, 88), crc32(&disk[table..table + ENTRIES * 128]));
            let mut next = u64_at(&header, 40);
            for (number, length) in lengths.iter().enumerate() {
                let entry = &disk[table + number * 128..][..128];
                assert_eq!((u64_at(entry, 32), u64_at(entry, 40)), (next, next + length / 512 - 1));
                next += length / 512;
            }
            assert_eq!(next - 1, u64_at(&header, 48));
        }
    }

    #[test]
    fn a_descriptor_lists_the_extents_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (1..=5).map(|n| folder.path().join(n.to_string())).collect();
        for (n, path) in (1..).zip(&paths) {
            fs::write(path, vec![1; n * 4096]).unwrap();
        }
        let packed = PackedDisk::open(&paths).unwrap();
        let names: Vec<String> = (0..7).map(|n| format!("/dev/fdset/{n}")).collect();
        let text = packed.descriptor(&names);
        let extents: Vec<&str> = text.lines().filter(|line| line.starts_with("RW ")).collect();
        assert_eq!(extents[0], "RW 72 FLAT \"/dev/fdset/0\" 0");
        assert_eq!(extents[5], "RW 40 FLAT \"/dev/fdset/5\" 0");
        assert_eq!(extents.len(), 7);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("odd");
        fs::write(&odd, vec![0; 1000]).unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, b"").unwrap();
        let sector = folder.path().join("sector");
        fs::write(&sector, vec![0; 512]).unwrap();
        let open = |path: &Path| DiskFile::open(&DiskBinding { path: path.to_owned(), read_only: true });
        for bad in [&odd, &empty, folder.path(), Path::new("/dev/null")] {
            assert_eq!(open(bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{}", bad.display());
        }
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(matches!(PackedDisk::open(&[sector]), Err(DiskError::Unfit { .. })));
        assert!(matches!(PackedDisk::open(&[]), Err(DiskError::LayerCount(0))));
        assert!(matches!(PackedDisk::open(&vec![odd; 256]), Err(DiskError::LayerCount(256))));
    }
}
