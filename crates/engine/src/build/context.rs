//! A build's files: the context that a client sent, or what COPY reads from an image.
//!
//! They are a stranger's, so they are never unpacked: contents lie one after the other in one nameless file, and names, links
//! and modes in memory. No name and no link in it can mean a file of the host.

mod pack;
mod select;
mod spool;

use std::collections::BTreeMap;
use std::fs::File;

pub use select::{Selected, clean};
pub use spool::SpoolError;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    /// Shape: where its content begins in the spool, its length, and its SHA-256.
    File {
        offset: u64,
        bytes: u64,
        hash: [u8; 32],
    },
    Symlink(Vec<u8>),
    Fifo,
    /// Whether it is a block device, major and minor number.
    Device {
        block: bool,
        number: (u32, u32),
    },
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since the epoch, 0 and more, as the tar crate writes them.
    pub modified: u64,
    /// Names with prefix, and values.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Node {
    /// A folder that nobody has described.
    fn plain_folder() -> Self {
        Self { kind: Kind::Folder, mode: 0o755, uid: 0, gid: 0, modified: 0, xattrs: Vec::new() }
    }
}

/// The files. Shape: paths have slashes between names and none at the ends; the root is the empty path.
#[derive(Debug)]
pub struct Context {
    nodes: BTreeMap<Vec<u8>, Node>,
    contents: File,
}

impl Context {
    /// The content of a small file, links followed; `None` if there is none.
    ///
    /// # Errors
    /// The spool cannot be read.
    pub fn read(&self, path: &str, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
        use std::os::unix::fs::FileExt;
        let Some((_, Node { kind: Kind::File { offset, bytes, .. }, .. })) = self.find(path.as_bytes()) else {
            return Ok(None);
        };
        let mut content = vec![0; usize::try_from((*bytes).min(limit)).unwrap_or(0)];
        self.contents.read_exact_at(&mut content, *offset)?;
        Ok(Some(content))
    }

    /// Takes a file away.
    pub fn remove(&mut self, path: &str) {
        self.nodes.remove(path.as_bytes());
    }
}
