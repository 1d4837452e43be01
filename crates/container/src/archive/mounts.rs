//! What is mounted in a container, in its place for one operation on the container's files.
//!
//! The thread that works on them gets a mount namespace of its own, in which every attachment is mounted on what the kernel
//! finds in the container's root ([`Root`]) under its path: a link of the container can lead it elsewhere in the root, and
//! nowhere else. Nobody but that thread sees these mounts, and they go with the namespace.
//!
//! Source: move_mount(2), open_tree(2); moby, daemon/containerfs_linux.go.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::process::fchdir;

use super::ArchiveError;
use crate::rootpath::Root;
use crate::sys;

/// A folder or file that is mounted in the container, cloned from where it is.
#[derive(Debug)]
pub struct Attachment {
    tree: OwnedFd,
    destination: PathBuf,
    is_folder: bool,
}

impl Attachment {
    /// Clones the mount. Shape: `source` is open, with [`OFlags::PATH`] or otherwise, and its mount is one of the calling
    /// thread's namespace; with `recursive`, what is mounted below it comes along. Nothing in it can be written to when it is
    /// `read_only`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(source: impl AsFd, destination: &Path, read_only: bool, recursive: bool) -> io::Result<Self> {
        let is_folder = FileType::from_raw_mode(fstat(&source)?.st_mode) == FileType::Directory;
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let tree = open_tree(&source, "", flags)?;
        if read_only {
            sys::set_mounts_read_only(tree.as_fd())?;
        }
        Ok(Self { tree, destination: destination.to_owned(), is_folder })
    }

    fn attach(&self, root: &Root) -> io::Result<()> {
        let target = match root.open_path(&self.destination) {
            // A container that has never run has no mount points yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_point(root)?,
            other => other?,
        };
        let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(self.tree.as_fd(), "", target.as_fd(), "", by_descriptors)?)
    }

    /// Makes what it is mounted on, if it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_point(&self, root: &Root) -> io::Result<OwnedFd> {
        if !self.is_folder {
            return root.make_file(&self.destination);
        }
        root.create_behind_links(&self.destination, FileType::Directory)?;
        root.create_folders(&self.destination)?;
        root.open_path(&self.destination)
    }
}

/// The namespace that the calling thread had before.
pub(super) struct Home(OwnedFd);

impl Home {
    /// Gives the thread its old namespace back; every mount of the other one has been unmounted when this returns.
    ///
    /// When: nothing of it is open any more.
    pub(super) fn come_back(self) -> Result<(), ArchiveError> {
        setns(self.0, CloneFlags::CLONE_NEWNS).map_err(|error| ArchiveError::Confine(error.into()))
    }
}

/// Gives the calling thread a mount namespace with the attachments in their places: the root in it.
///
/// When: in a thread that ends with its work; `root` is the root of a mount of the thread's namespace.
pub(super) fn enter(root: &Root, attachments: &[Attachment]) -> Result<(Root, Home), ArchiveError> {
    let enter = || -> io::Result<(Root, Home)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let home = Home(open("/proc/thread-self/ns/mnt", flags, Mode::empty())?);
        unshare(CloneFlags::CLONE_FS)?;
        // A folder that is open stays in the old namespace; the working folder goes along.
        fchdir(root.folder())?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok((Root::open(Path::new("."))?, home))
    };
    let (root, home) = enter().map_err(ArchiveError::Confine)?;
    let mut ordered: Vec<&Attachment> = attachments.iter().collect();
    // A folder before what is below it.
    ordered.sort_by_key(|attachment| attachment.destination.components().count());
    for attachment in ordered {
        let attached = attachment.attach(&root);
        attached.map_err(|source| ArchiveError::Mount { path: attachment.destination.clone(), source })?;
    }
    Ok((root, home))
}
