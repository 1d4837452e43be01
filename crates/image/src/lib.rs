//! Images: from an archive or a root file system to the read-only layers and the writable disk that a container is made of.
//!
//! ```text
//! registry ─ pull ─┐                         ┌─ layers/<diffID>.erofs ── layer_files ──> mounted by container or guest
//! archive ── load ─┼─ tar ─ tree ─ erofs ────┤          └──────────────── layer_tar ────> push, save
//! rootfs  ─ import ┘   (convert, one pass)   └─ images.redb: configurations, names, layers
//! ```
//!
//! Everything that is read here was made by strangers: it is bounded (see [`limits`]), checked against its digests, and
//! never unpacked to a file system. Layers are read by jailed processes of this very program: its `main` begins with
//! [`serve_if_converter`]. What is committed is on the disk: file, folder, then record. The crate knows no mounts and no
//! containers. It is synchronous, and knows no network, but for [`registry`], whose futures run on tokio.
//!
//! Read first: [`ImageStore`], [`Image`], [`Reference`], [`Scratch`].
//! Source: OCI image-spec 1.1, Docker image specification 1.2, Linux Documentation/filesystems/{erofs,overlayfs}.rst.
#![forbid(unsafe_code)]

mod build;
#[cfg(test)]
mod cases;
mod changes;
mod commit;
mod compression;
mod config;
mod content;
mod convert;
mod erofs;
pub mod failpoint;
mod folders;
mod import;
mod labels;
mod layer_tar;
pub mod limits;
mod load;
mod nothing;
mod recipe;
mod records;
mod reference;
pub mod registry;
pub mod rehearsal;
mod save;
mod scratch;
mod seal;
mod store;
mod tar;
#[cfg(test)]
mod testing;
mod timestamp;
mod tree;
mod worker;
mod worker_fault;

pub use build::BuildStep;
pub use changes::ChangeError;
pub use commit::{CommitError, CommitOptions};
pub use compression::{StreamRefusal, decompressed};
pub use config::{ConfigError, Image, host_architecture};
pub use content::{FileError, LayerFault};
pub use convert::LayerError;
pub use erofs::SuperblockFault;
pub use import::{ImportError, ImportOptions};
pub use labels::{inheritable_labels, is_reserved_label};
pub use layer_tar::LayerTar;
pub use load::{LoadError, LoadEvent, LoadedImage, SpoolFault};
pub use records::RecordsError;
pub use reference::{InvalidReference, Reference};
pub use save::{SaveError, Saving};
pub use scratch::{Scratch, ScratchError, prepare_upper};
pub use store::{
    CheckReport, Finding, HistoryEntry, ImageHold, ImageLease, ImageStore, ImageSummary, ImageUse, LayerFilesError,
    OpenError, Remedy, RemoveError, Removed, ResolveError, StoreError, TagError,
};
pub use tar::TarError;
pub use tree::EntryFault;
pub use worker::{Converter, Jail, JailError, convert_layer, serve_if_converter};
pub use worker_fault::WorkerFault;
