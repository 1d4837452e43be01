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
pub use spool::{SpoolError, nameless};

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
    /// Bytes of contents so far.
    written: u64,
    /// Bytes of names that may still come.
    names_left: usize,
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

    /// What is in one of its folders only, links to that followed; `None` if there is no such folder.
    pub fn narrowed(mut self, path: &str) -> Option<Self> {
        let (folder, node) = self.find(path.as_bytes())?;
        if node.kind != Kind::Folder {
            return None;
        }
        let mut nodes = BTreeMap::from([(Vec::new(), node.clone())]);
        let below = self.below(&folder);
        nodes.extend(below.map(|(path, node)| {
            let name = path.strip_prefix(&folder[..]).unwrap_or(path);
            (name.strip_prefix(b"/").unwrap_or(name).to_vec(), node.clone())
        }));
        self.nodes = nodes;
        Some(self)
    }

    /// Everything at its root, whatever it is called.
    #[must_use]
    pub fn select_all(&self) -> Vec<Selected> {
        let top = self.nodes.keys().filter(|path| !path.is_empty() && !path.contains(&b'/'));
        top.filter_map(|path| self.one(path)).collect()
    }

    /// Takes a file away.
    pub fn remove(&mut self, path: &str) {
        self.nodes.remove(path.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            // Neither mode nor owner are there, as some clients leave them out.
            tar.append_data(&mut header, path, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn several_streams_make_one_context_and_a_folder_of_it_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut context = Context::empty(folder.path()).unwrap();
        context.take_in(&tar(&[("a", b"one"), ("sub/b", b"two")])[..], 100, (0, "")).unwrap();
        context.take_in(&tar(&[("c", b"three")])[..], 100, (0, "sub/deep")).unwrap();
        let text = |context: &Context, path: &str| context.read(path, 100).unwrap();
        assert_eq!((text(&context, "a"), text(&context, "sub/deep/c")), (Some(b"one".into()), Some(b"three".into())));
        let error = context.take_in(&tar(&[("d", &[0; 90])])[..], 100, (0, "")).unwrap_err();
        assert!(matches!(error, SpoolError::TooLarge(_)), "the bound is for all of them");
        let narrowed = context.narrowed("sub/../sub/./").unwrap();
        assert_eq!((text(&narrowed, "b"), text(&narrowed, "deep/c")), (Some(b"two".into()), Some(b"three".into())));
        assert_eq!(text(&narrowed, "a"), None);
        assert!(narrowed.narrowed("b").is_none(), "no folder");
    }

    #[test]
    fn a_single_file_keeps_its_odd_name() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context::of_file(folder.path(), "a*[", 7, &b"x"[..], 1).unwrap();
        let selected = context.select_all();
        assert_eq!((selected.len(), &selected[0].name[..]), (1, &b"a*["[..]));
        assert!(Context::of_file(folder.path(), "a", 7, &b"xy"[..], 1).is_err());
    }
}
