//! What a process has that serves shares: these, and nothing else.
//!
//! Its root is a read-only tmpfs with them in it and a procfs that shows processes only (the file system needs its own open
//! files by name). It has no network, no setting of the kernel, no way to open a device, and of root's capabilities those that
//! decide about files.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
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

/// Where they are in the jail.
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

/// Makes shares, mounts that hang nowhere, all that this process has: each in a folder by its number, or the only one at once.
///
/// When: in a process without threads.
///
/// # Errors
/// The step that failed, and why.
pub fn enter(shares: Vec<OwnedFd>, numbered: bool) -> anyhow::Result<()> {
    use anyhow::Context;
    anyhow::ensure!(numbered || shares.len() == 1, "{} shares in one place", shares.len());
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .context("cannot make namespaces")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the mounts private")?;
    build(shares, numbered).context("cannot build the jail")
}

/// A tmpfs with the shares and a procfs becomes the root.
fn build(shares: Vec<OwnedFd>, numbered: bool) -> io::Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", STAGE, "tmpfs", plain, Some(c"mode=755,size=64k"))?;
    let stage = Path::new(STAGE);
    let (root, proc) = (stage.join(ROOT.trim_start_matches('/')), stage.join("proc"));
    fs::create_dir(&root)?;
    fs::create_dir(&proc)?;
    mount("proc", &proc, "proc", plain, Some(c"subset=pid"))?;
    for (number, share) in shares.into_iter().enumerate() {
        let place = if numbered { root.join(number.to_string()) } else { root.clone() };
        fs::create_dir_all(&place)?;
        let target = if FileType::from_raw_mode(fstat(&share)?.st_mode) == FileType::Directory {
            place
        } else {
            let file = place.join(FILE);
            File::create(&file)?;
            file
        };
        move_mount(&share, "", rustix::fs::CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
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
