//! The changes that overlayfs has noted in an upper folder, as an OCI layer has them.
//!
//! Source: Linux Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; OCI image-spec, layer.md.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, Stat, openat};

use super::entry::{Entry, Kind, Time, is_folder, is_whiteout, size_of};
use super::error::{ArchiveError, shown};
use super::pack::{Packer, names};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// A machine id and its line end; a mount point has no byte.
const MOST_OWN_BYTES: u64 = 33;

/// Paths that the engine has made in a container: mount points, and the identity that each start gives anew. They belong
/// neither to its changes nor into an image.
pub(super) struct Own(HashSet<Vec<u8>>);

impl Own {
    /// Shape: absolute paths.
    pub fn new(paths: &[String]) -> Self {
        Self(paths.iter().map(|path| path.trim_matches('/').as_bytes().to_vec()).collect())
    }

    pub fn has(&self, path: &[u8]) -> bool {
        self.0.contains(path)
    }

    /// True when a file at one of the paths looks as the engine has made it.
    pub fn is_file(&self, path: &[u8], stat: &Stat) -> bool {
        let small = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && size_of(stat) <= MOST_OWN_BYTES;
        small && self.has(path)
    }
}

impl<W: Write> Packer<'_, W> {
    /// Deals with what a layer has otherwise than a tree. True when the node is done with.
    pub(super) fn layer_node(
        &mut self,
        own: &Own,
        folder: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
    ) -> Result<bool, ArchiveError> {
        if name.as_bytes().starts_with(WHITEOUT_PREFIX) {
            return Err(ArchiveError::Name(shown(path)));
        }
        if is_whiteout(stat) {
            let parent = &path[..path.len() - name.len()];
            let sign = [parent, WHITEOUT_PREFIX, name.as_bytes()].concat();
            self.tar.begin(&sign_entry(sign)).map_err(ArchiveError::Stream)?;
            return Ok(true);
        }
        if is_folder(stat) && own.has(path) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(folder, name, flags, Mode::empty()).map_err(ArchiveError::at("open", path))?;
            return Ok(names(&opened).map_err(ArchiveError::at("list", path))?.is_empty());
        }
        Ok(own.is_file(path, stat))
    }

    /// Writes the sign that a folder hides what is below it. Shape: `path` ends in a slash.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), ArchiveError> {
        let sign = [path, OPAQUE_NAME].concat();
        self.tar.begin(&sign_entry(sign)).map_err(ArchiveError::Stream)
    }
}

fn sign_entry(path: Vec<u8>) -> Entry {
    Entry {
        path,
        link: Vec::new(),
        kind: Kind::Regular,
        mode: 0,
        uid: 0,
        gid: 0,
        modified: Time::default(),
        size: 0,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}
