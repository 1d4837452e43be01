//! Images: from an archive or a root file system to the read-only layers and the writable disk that a container is made of.
//!
//! ```text
//! archive ── load ─┐                         ┌─ layers/<diffID>.erofs ── layer_files ──> mounted by container or guest
//!                  ├─ tar ─ tree ─ erofs ────┤
//! rootfs  ─ import ┘   (convert, one pass)   └─ images.redb: configurations, names, layers
//! ```
//!
//! Everything that is read here was made by strangers: it is bounded (see [`limits`]), checked against its digests, and
//! never unpacked to a file system. What is committed is on the disk: file, folder, then record. The crate knows no
//! registry, no mounts, no containers and no network; it is synchronous.
//!
//! Read first: [`ImageStore`], [`Image`], [`Reference`], [`Scratch`].
//! Source: OCI image-spec 1.1, Docker image specification 1.2, Linux Documentation/filesystems/{erofs,overlayfs}.rst.
#![forbid(unsafe_code)]

mod changes;
mod commit;
mod compression;
mod config;
mod content;
mod convert;
mod erofs;
mod import;
mod labels;
pub mod limits;
mod load;
mod records;
mod reference;
mod scratch;
mod store;
mod tar;
#[cfg(test)]
mod testing;
mod timestamp;
mod tree;

pub use changes::ChangeError;
pub use commit::{CommitError, CommitOptions};
pub use compression::{StreamRefusal, decompressed};
pub use config::{ConfigError, Image, host_architecture};
pub use content::{FileError, LayerFault};
pub use convert::LayerError;
pub use erofs::SuperblockFault;
pub use import::{ImportError, ImportOptions};
pub use labels::{inheritable_labels, is_reserved_label};
pub use load::{LoadError, LoadEvent, LoadedImage, SpoolFault};
pub use records::RecordsError;
pub use reference::{InvalidReference, Reference};
pub use scratch::{Scratch, ScratchError, prepare_upper};
pub use store::{
    HistoryEntry, ImageStore, ImageSummary, ImageUse, LayerFilesError, OpenError, RemoveError, Removed, ResolveError,
    StoreError, TagError,
};
pub use tar::TarError;
pub use tree::EntryFault;
