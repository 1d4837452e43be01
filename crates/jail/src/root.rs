//! An empty folder as the root of a mount namespace.

use std::thread::{self, JoinHandle};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::{JailError, system};

/// The host's mounts on their way out of this process's namespace. The kernel lets all processors come to rest before it goes on, which
/// takes up to 20 ms on a busy machine: so a thread waits for it, and the process makes meanwhile what it needs.
#[derive(Debug)]
#[must_use = "a wall is missing until it has finished"]
pub struct Leaving(Option<JoinHandle<rustix::io::Result<()>>>);

impl Leaving {
    /// Nothing has to leave.
    pub(crate) const fn nothing() -> Self {
        Self(None)
    }

    /// Answers when they are gone. When: before anything of a stranger's is looked at.
    ///
    /// # Errors
    /// When they are still there; the process must end.
    pub fn finish(self) -> Result<(), JailError> {
        let Some(thread) = self.0 else { return Ok(()) };
        let left = thread.join().unwrap_or(Err(rustix::io::Errno::CANCELED));
        left.map_err(system("let go of the host's mounts"))?;
        chdir("/").map_err(system("leave the host's folder"))
    }
}

/// Puts an empty file system, which nobody can write, in the place of all that is mounted.
///
/// When: in a mount namespace of the process's own, which it has just made. The process stays in its folder until what is
/// answered has finished.
pub(crate) fn become_empty() -> Result<Leaving, JailError> {
    // Otherwise what is undone here would be undone on the host.
    let own = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", own).map_err(system("make the mounts its own"))?;
    let system_of = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(system("make an empty file system"))?;
    fsconfig_set_flag(&system_of, "ro").map_err(system("make an empty file system read-only"))?;
    fsconfig_create(&system_of).map_err(system("create an empty file system"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = fsmount(&system_of, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(system("mount it"))?;
    move_mount(&empty, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(system("put it over the root"))?;
    fchdir(&empty).map_err(system("go there"))?;
    pivot_root(".", ".").map_err(system("make it the root"))?;
    // What was the root lies over the new one, and goes with all that is below it.
    let leave = || unmount(".", UnmountFlags::DETACH);
    let thread = thread::Builder::new().name("mounts".to_owned()).spawn(leave);
    Ok(Leaving(Some(thread.map_err(system("start a thread"))?)))
}
