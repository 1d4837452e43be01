//! What a process has that serves a share: the share, and nothing else.
//!
//! Its root is a read-only tmpfs with the share in it and a procfs that shows processes only (the file system needs its own open
//! files by name). It has no network, no setting of the kernel, no way to open a device, and of root's capabilities those that
//! decide about files.

use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{FileType, Mode, fstat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change, mount_remount, move_mount,
    unmount,
};
use rustix::process::{Resource, Rlimit, chdir, getrlimit, pivot_root, setrlimit, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::{FILE, filter};

/// Where the share is in the jail.
pub const ROOT: &str = "/share";
/// Where the jail is put together; every Linux has the folder.
const STAGE: &str = "/run";
/// Files that may be open at once; the guest's kernel keeps one open here for each file it knows.
const OPEN_FILES: u64 = 1 << 20;

/// What a server of files may do as root. Not among them: to make devices.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP);

/// Makes the share, a mount that hangs nowhere, this process' root.
///
/// When: in a process without threads.
///
/// # Errors
/// The step that failed, and why.
pub fn enter(share: BorrowedFd<'_>) -> anyhow::Result<()> {
    use anyhow::Context;
    let folder = FileType::from_raw_mode(fstat(share)?.st_mode) == FileType::Directory;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .context("cannot make namespaces")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the mounts private")?;
    build(share, folder).context("cannot build the jail")
}

/// A tmpfs with the share and a procfs becomes the root.
fn build(tree: BorrowedFd<'_>, folder: bool) -> io::Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", STAGE, "tmpfs", plain, Some(c"mode=755,size=64k"))?;
    let stage = Path::new(STAGE);
    let (share, proc) = (stage.join(ROOT.trim_start_matches('/')), stage.join("proc"));
    fs::create_dir(&share)?;
    fs::create_dir(&proc)?;
    mount("proc", &proc, "proc", plain, Some(c"subset=pid"))?;
    let target = if folder {
        share
    } else {
        let file = share.join(FILE);
        File::create(&file)?;
        file
    };
    move_mount(tree, "", rustix::fs::CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    mount_remount(STAGE, MountFlags::BIND | MountFlags::RDONLY | plain, c"")?;
    chdir(STAGE)?;
    pivot_root(".", ".")?;
    // What was the root lies over the new one, and goes.
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}

/// Gives up everything that serving does not need. When: after [`enter`], when everything that is needed is open.
///
/// # Errors
/// The kernel's.
pub fn confine() -> anyhow::Result<()> {
    umask(Mode::empty());
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    for capability in CapabilitySet::all().difference(CAPABILITIES).iter() {
        // A kernel does not know all of them.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let sets = CapabilitySets { effective: CAPABILITIES, permitted: CAPABILITIES, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    set_no_new_privs(true)?;
    filter::install()
}
