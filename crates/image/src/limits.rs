//! How large anything that comes from outside may be. Each bound is a constant with its origin; the ones that a test
//! must reach cheaply are also fields of [`Limits`].

/// Entries in one layer. The largest layers seen in the wild (language package trees) hold some 400,000.
pub const MAX_LAYER_ENTRIES: u64 = 1_000_000;
/// Bytes of a path in a layer. Source: Linux `PATH_MAX` (4096 with the final NUL).
pub const MAX_PATH_BYTES: usize = 4095;
/// Bytes of one name. Source: Linux `NAME_MAX`, EROFS `EROFS_NAME_LEN`.
pub const MAX_NAME_BYTES: usize = 255;
/// Bytes of a symbolic link's target. Source: Linux `PATH_MAX`.
pub const MAX_LINK_BYTES: usize = 4095;
/// Folders above an entry, after symbolic links were followed.
pub const MAX_DEPTH: u16 = 2048;
/// Symbolic links followed while one path is looked up. Source: Linux `MAXSYMLINKS`.
pub const MAX_SYMLINKS: usize = 40;
/// Extended attributes of one entry.
pub const MAX_XATTRS: usize = 512;
/// Bytes of names and values of one entry's extended attributes, as stored. Source: Linux `XATTR_LIST_MAX`; EROFS holds 16-bit lengths.
pub const MAX_XATTR_BYTES: usize = 65_535;
/// Bytes of the extended attributes of a layer's root folder, whose inode has a fixed place in the first block.
pub const MAX_ROOT_XATTR_BYTES: usize = 2048;
/// Bytes of one PAX or GNU extension header. Source: Go `archive/tar`, `maxSpecialFileSize`.
pub const MAX_TAR_EXTENSION_BYTES: u64 = 1 << 20;
/// Bytes of all headers that describe one entry of a layer.
pub const MAX_TAR_DESCRIPTION_BYTES: usize = 8 << 20;
/// Memory for the names, link targets and folders' attributes of one layer: a million files with names of 40 bytes, or a
/// million folders with names of 12. Source: docs/design/0010-conversion-worker.md.
pub const MAX_TREE_BYTES: usize = 96 << 20;
/// Private memory of a process that converts a layer. Beside it stand some MiB of the program's own text, so that the whole
/// stays below 128 MiB.
pub const MAX_WORKER_BYTES: u64 = 120 << 20;
/// Uncompressed bytes of one layer, holes of sparse files included.
pub const MAX_LAYER_BYTES: u64 = 64 << 30;
/// Bytes that a decompressor may give out whatever it was fed.
pub const DECOMPRESSION_FREE_BYTES: u64 = 1 << 30;
/// Beyond [`DECOMPRESSION_FREE_BYTES`]: bytes given out for each byte fed. Ordinary layers reach 3 to 10, gzip at most 1032.
pub const DECOMPRESSION_MAX_RATIO: u64 = 200;
/// Largest zstd window, as a power of two (64 MiB): what a worker's memory has room for. zstd's levels up to 19 use 8 MiB at
/// most; only `--ultra -22` and `--long=27` ask for 128.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 26;
/// Memory for undoing xz, KiB: a dictionary of 64 MiB, as `xz -9` has, and what stands beside it.
pub const MAX_XZ_KIB: u32 = (64 << 10) + 1024;
/// Uncompressed bytes of a whole archive.
pub const MAX_ARCHIVE_BYTES: u64 = 256 << 30;
/// Files in an archive.
pub const MAX_ARCHIVE_FILES: usize = 20_000;
/// Bytes of one JSON document: manifest, index, image configuration. Containerd takes 8 to 20 MiB; real ones are under 1 MiB.
pub const MAX_JSON_BYTES: u64 = 8 << 20;
/// Layers of one image. Source: Linux overlayfs, `OVL_MAX_STACK`.
pub const MAX_LAYERS: usize = 500;
/// Manifests of one index.
pub const MAX_INDEX_MANIFESTS: usize = 1_000;
/// Indexes inside indexes.
pub const MAX_INDEX_DEPTH: usize = 4;
/// Images in one archive.
pub const MAX_ARCHIVE_IMAGES: usize = 1_000;

/// The bounds that a store keeps to while it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// See [`MAX_LAYER_ENTRIES`].
    pub layer_entries: u64,
    /// See [`MAX_LAYER_BYTES`].
    pub layer_bytes: u64,
    /// See [`DECOMPRESSION_FREE_BYTES`].
    pub decompression_free_bytes: u64,
    /// See [`DECOMPRESSION_MAX_RATIO`].
    pub decompression_max_ratio: u64,
    /// See [`MAX_ARCHIVE_BYTES`].
    pub archive_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_entries: MAX_LAYER_ENTRIES,
            layer_bytes: MAX_LAYER_BYTES,
            decompression_free_bytes: DECOMPRESSION_FREE_BYTES,
            decompression_max_ratio: DECOMPRESSION_MAX_RATIO,
            archive_bytes: MAX_ARCHIVE_BYTES,
        }
    }
}
