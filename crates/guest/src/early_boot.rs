//! From the kernel's first user process to a guest whose modules are loaded and whose port to the host is bound. Nothing
//! here is specific to a container, and nothing here reads the boot id: the kernel makes it at its first reading, which
//! must be after the fork.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_move};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::devices::{self, Slots};
use crate::kernel_log::KernelLog;
use crate::machine::{Machine, Spare};
use crate::network::Network;
use crate::places;
use crate::sys;

/// Where the initramfs has the modules.
const MODULES: &str = "/modules";
/// Open files a process may have, as Docker's containers have it.
const OPEN_FILES: u64 = 1 << 20;

/// Brings the guest up.
///
/// # Errors
/// When anything is missing that a container would need; the caller then ends the VM.
pub fn run() -> Result<(Machine, Network)> {
    become_movable_root()?;
    mount_kernel_file_systems()?;
    KernelLog::install().context("no kernel log")?;
    raise_limits()?;
    sys::switch_on_loopback().context("cannot switch on the loopback device")?;
    load_modules(Path::new(MODULES))?;
    // Loaded modules need no file; their memory is the fork's.
    fs::remove_dir_all(MODULES).context("cannot drop the module files")?;
    devices::bind_console().context("cannot bind the port's device")?;
    let slots = Slots::bind().context("cannot list the disk slots")?;
    devices::bind_file_system().context("cannot bind the file system")?;
    let network = Network::prepare(devices::bind_network()?).context("cannot prepare the network slots")?;
    prepare_folders()?;
    container::prepare().context("cannot prepare for a container")?;
    let spare = Spare::prepare().context("cannot prepare the processes that wait for a container")?;
    Ok((Machine { slots, spare }, network))
}

/// What the container will be mounted on, and the controllers that its cgroup will use.
fn prepare_folders() -> Result<()> {
    for folder in places::FOLDERS {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {folder}"))?;
    }
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).context("cannot read the controllers")?;
    for controller in controllers.split_ascii_whitespace() {
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("cannot enable the controller {controller}"))?;
    }
    Ok(())
}

/// `pivot_root(2)` refuses to replace the initial ramfs, and every container start needs it. A bind mount of the root over
/// itself is a root that has a parent.
fn become_movable_root() -> Result<()> {
    mount_bind("/", "/root").context("cannot bind the root")?;
    rustix::process::chdir("/root")?;
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot change the root")?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn mount_kernel_file_systems() -> Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_one("proc", "/proc", plain, None)?;
    mount_one("sysfs", "/sys", plain, None)?;
    mount_one("devtmpfs", "/dev", MountFlags::NOSUID, None)?;
    fs::create_dir_all("/dev/pts").context("cannot create /dev/pts")?;
    mount_one("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"mode=0620,ptmxmode=0666,gid=5"))?;
    mount_one("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    // favordynmods makes attaching a process to a cgroup cheap from the start; kernels before 6.0 do not know it.
    mount_one("cgroup2", "/sys/fs/cgroup", plain, Some(c"favordynmods"))
        .or_else(|_| mount_one("cgroup2", "/sys/fs/cgroup", plain, None))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("cannot make / private")
}

fn mount_one(kind: &str, target: &str, flags: MountFlags, options: Option<&CStr>) -> Result<()> {
    mount(kind, target, kind, flags, options).with_context(|| format!("cannot mount {target}"))
}

/// A container without limits of its own has these; the kernel's for PID 1 are made for small machines.
fn raise_limits() -> Result<()> {
    let files = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, files).context("cannot raise the limit of open files")?;
    let unlimited = || Rlimit { current: None, maximum: None };
    setrlimit(Resource::Nproc, unlimited()).context("cannot raise the limit of processes")?;
    setrlimit(Resource::Core, unlimited()).context("cannot raise the limit of core files")
}

/// Loads the modules in their order. As soon as there is a virtio bus its automatic probing is switched off: every device
/// is bound by name, and all but the port's only after the fork, when the host has put the container's disks behind them.
fn load_modules(folder: &Path) -> Result<()> {
    let mut manual = false;
    load_in_order(folder, || {
        manual = manual || devices::switch_off_probing().context("cannot switch off the virtio bus's probing")?;
        Ok(())
    })?;
    // A kernel with virtio built in has probed before us.
    anyhow::ensure!(manual || devices::switch_off_probing()?, "the kernel has no virtio bus");
    Ok(())
}

/// Loads a folder's modules in their order, and does something after each.
///
/// # Errors
/// One is missing, or the kernel refuses it; what `then` says.
pub fn load_in_order(folder: &Path, mut then: impl FnMut() -> Result<()>) -> Result<()> {
    let order = fs::read_to_string(folder.join("order")).context("no list of modules")?;
    for name in order.lines() {
        load_module(&folder.join(format!("{name}.ko"))).with_context(|| format!("cannot load module {name}"))?;
        then()?;
    }
    Ok(())
}

fn load_module(file: &PathBuf) -> io::Result<()> {
    match rustix::system::finit_module(File::open(file)?, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
