//! From a [`Context`] to the tar stream that is placed in an image.

use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use tar::{Builder, EntryType, Header};

use super::{Context, Kind, Node, Selected};

impl Context {
    /// Writes what was selected, each as it lies in the destination folder. Shape: everything belongs to root unless
    /// `keep_owners`.
    ///
    /// # Errors
    /// Of the spool, or of `to`.
    pub fn pack(&self, selected: &[Selected], keep_owners: bool, to: impl Write) -> io::Result<()> {
        let mut tar = Builder::new(to);
        for one in selected {
            if !one.is_folder {
                if let Some(node) = self.nodes.get(&one.path) {
                    self.append(&mut tar, &one.name, node, keep_owners)?;
                }
                continue;
            }
            for (path, node) in self.below(&one.path) {
                let name = path.strip_prefix(&one.path[..]).unwrap_or(path);
                let name = name.strip_prefix(b"/").unwrap_or(name);
                self.append(&mut tar, name, node, keep_owners)?;
            }
        }
        tar.into_inner()?.flush()
    }

    /// The content of something that was selected, if it is a file.
    pub fn content(&self, selected: &Selected) -> Option<Content<'_>> {
        match self.nodes.get(&selected.path)?.kind {
            Kind::File { offset, bytes, .. } => Some(Content { context: self, offset, left: bytes }),
            _ => None,
        }
    }

    fn append(&self, tar: &mut Builder<impl Write>, name: &[u8], node: &Node, keep_owners: bool) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let name = std::path::Path::new(std::ffi::OsStr::from_bytes(name));
        let mut header = Header::new_gnu();
        header.set_mode(node.mode);
        header.set_uid(if keep_owners { node.uid } else { 0 });
        header.set_gid(if keep_owners { node.gid } else { 0 });
        header.set_mtime(node.modified);
        header.set_size(0);
        if !node.xattrs.is_empty() {
            tar.append_pax_extensions(node.xattrs.iter().map(|(name, value)| (name.as_str(), &value[..])))?;
        }
        match &node.kind {
            Kind::Folder => header.set_entry_type(EntryType::Directory),
            Kind::File { offset, bytes, .. } => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(*bytes);
                let content = Content { context: self, offset: *offset, left: *bytes };
                return tar.append_data(&mut header, name, content);
            }
            Kind::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                return tar.append_link(&mut header, name, std::ffi::OsStr::from_bytes(target));
            }
            Kind::Fifo => header.set_entry_type(EntryType::Fifo),
            Kind::Device { block, number } => {
                header.set_entry_type(if *block { EntryType::Block } else { EntryType::Char });
                header.set_device_major(number.0)?;
                header.set_device_minor(number.1)?;
            }
        }
        tar.append_data(&mut header, name, io::empty())
    }
}

/// A file's content, as it is read from the spool.
#[derive(Debug)]
pub struct Content<'a> {
    context: &'a Context,
    offset: u64,
    left: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.context.contents.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}
