//! Confining a thread to a container's root.

use std::io;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::Mode;
use rustix::process::{chroot, fchdir, umask};

use super::ArchiveError;

/// Gives the calling thread a root folder, a working folder and a mask of its own: the container's root twice, and none. From
/// here on no path leads this thread anywhere else; folders that are open already stay usable.
///
/// When: in a thread that ends with its work.
///
/// # Errors
/// [`ArchiveError::Confine`].
pub(super) fn confine(root: impl AsFd) -> Result<(), ArchiveError> {
    let enter = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_FS)?;
        fchdir(&root)?;
        chroot(".")?;
        umask(Mode::empty());
        Ok(())
    };
    enter().map_err(ArchiveError::Confine)
}
