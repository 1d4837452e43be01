//! Confining a thread to a container's root.

use std::io;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, chroot, fchdir, getrlimit, setrlimit, umask};

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

/// Every folder on the way down is held open.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer, a tree that lies too deep is an error sooner.
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
