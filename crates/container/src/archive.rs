//! A container's files from outside of it: reading a path as a tar stream, unpacking one into a folder, what has changed, and
//! the changes as an image's layer. The same code on the host and in a guest.
//!
//! Nothing of the container is executed, and no path of it is ever looked up with the eyes of the process that does it: every
//! step goes from an open folder to a name in it, and links are followed by the kernel within the container's root
//! ([`Root`]). The thread that does it has that root as its own besides, so that not even a mistake here leads out of it.
//! However a container changes its tree meanwhile, only its own files are read and written.
//!
//! Source: docs/design/0008; openat2(2), `RESOLVE_IN_ROOT`; CVE-2018-15664, CVE-2019-14271, CVE-2026-41567, -41568, -42306.

mod attributes;
mod changes;
mod confine;
mod copy;
mod entry;
mod error;
mod holes;
mod layer;
mod mounts;
mod pack;
mod path;
mod reader;
mod serve;
mod unpack;
mod writer;

pub use crate::rootpath::Root;
pub use copy::copy_folder;
pub use error::ArchiveError;
pub use mounts::Attachment;
pub use serve::{ContainerFiles, pack_layer, serve};

#[cfg(test)]
mod tests;
