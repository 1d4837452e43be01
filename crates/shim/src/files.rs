//! `files`: one operation on the files of a container, by a process of its own that ends with it.
//!
//! The engine starts it with a socket as its standard input, over which `proto::files` is spoken. A container that has ended
//! has no shim, and one of process isolation that runs has none with the time for it: what reads a container's tree should
//! not be the process that holds the container. So
//!
//! - process isolation: its own mount namespace, with the root mounted as for a start, or, while the container runs, a copy of
//!   its shim's mount namespace, where the root is mounted already; then [`container::archive`];
//! - hyperv isolation, not running: for what lies in a volume or a bind, these alone; else a utility VM with the container's disks, in which the guest mounts them and serves the
//!   operation. (The shim of one that runs relays to its guest, see [`relay`].) The host never reads that disk.

pub mod relay;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use container::archive::{Attachment, ContainerFiles, Root, serve};
use container::rootfs::{self, LayerSource, MountedRootfs, Upper};
use nix::sched::{CloneFlags, setns, unshare};
use proto::control::{ContainerBundle, UpperDisk, Writable};
use proto::files::{FilesMount, FilesRequest, FrameSender};
use proto::gcs::wire::{self, Empty, MountRootRequest};
use proto::gcs::{StreamHeader, StreamKind};
use proto::{ErrorKind, Isolation, Status};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uvm::{StartRequest, UtilityVm};

use crate::bundle::Bundle;
use crate::flags::Flags;
use crate::parts;

/// Source: `linux/magic.h`.
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;
/// The number of the one operation in a VM.
const OPERATION: u32 = 1;
/// The guest's own name, which nobody sees.
const HOSTNAME: &str = "files";

/// Serves one operation. When: in a process without threads; standard input is a socket, the working directory is empty and
/// takes mount points.
///
/// # Errors
/// The socket or the bundle cannot be used, or a disk was not given back in order. What failed of the operation is told over
/// the socket.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned().context("no standard input")?;
    let socket = UnixStream::from(socket);
    raise_descriptor_limit();
    let work = std::env::current_dir().context("no working directory")?;
    let bundle = Bundle::at(flags.bundle.clone().unwrap_or_else(|| work.clone()));
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false).with_writer(io::stderr).init();
    let prepared = prepare(&bundle, flags);
    let container = match prepared {
        Ok(container) => container,
        Err(status) => return refuse(&socket, status),
    };
    match container.isolation {
        _ if flags.mounts => {
            serve(&socket, &socket, |request| Ok((mounts_alone(&work, request)?, ()))).context("the connection broke")
        }
        Isolation::Process => {
            let trees = HostTrees { container: &container, work: &work, live: flags.live };
            serve(&socket, &socket, |request| trees.open(request)).context("the connection broke")
        }
        Isolation::Hyperv => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
            runtime.block_on(async {
                match with_vm(&container, &work, &socket).await {
                    Ok(()) => Ok(()),
                    Err(status) => {
                        // Too late for it when the guest has answered already; then the exit code tells.
                        refuse(&socket, status.clone())?;
                        Err(status.into())
                    }
                }
            })
        }
    }
}

/// Every folder on the way down a tree is held open.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer, a tree that lies too deep is an error sooner.
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Reads the bundle and has the mounts in which its paths mean something.
fn prepare(bundle: &Bundle, flags: &Flags) -> Result<ContainerBundle, Status> {
    let container = bundle.container().map_err(|error| Status::from_error(error.kind(), &error))?;
    let missing = || Status::new(ErrorKind::FailedPrecondition, "the container is not running any more");
    let container = container.ok_or_else(missing)?;
    if container.isolation == Isolation::Process || flags.mounts {
        let entered = if flags.live { enter_mounts_of_shim(bundle) } else { Ok(()) };
        entered.and_then(|()| own_mounts()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(),
            _ => Status::from_error(ErrorKind::Internal, &error),
        })?;
    }
    Ok(container)
}

/// Says why nothing was done, in the place of an answer.
fn refuse(socket: &UnixStream, status: Status) -> anyhow::Result<()> {
    FrameSender::new(socket).end(&Err(status)).context("the connection broke")
}

/// Enters the mount namespace of the container's shim.
fn enter_mounts_of_shim(bundle: &Bundle) -> io::Result<()> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let shim = bundle.shim().ok_or_else(gone)?;
    let mounts = File::open(format!("/proc/{}/ns/mnt", shim.pid))?;
    // Looked at after the namespace was opened: a later process with that number has another start time.
    if !shim.is_alive() {
        return Err(gone());
    }
    Ok(setns(mounts, CloneFlags::CLONE_NEWNS)?)
}

/// Mounts of ours are seen by nobody, and nobody's by us.
pub fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// The trees of a process container.
struct HostTrees<'a> {
    container: &'a ContainerBundle,
    /// Takes mount points.
    work: &'a Path,
    /// The root is mounted already.
    live: bool,
}

impl HostTrees<'_> {
    fn open(&self, request: &FilesRequest) -> Result<(ContainerFiles, Mounts), Status> {
        let Writable::Upper { upper, work, merged, disk } = &self.container.writable else {
            return Err(Status::new(ErrorKind::InvalidArgument, "process isolation needs an upper folder"));
        };
        let mut mounts = Mounts::default();
        if let Some(UpperDisk { file, point }) = disk.as_ref().filter(|_| !self.live) {
            make_folder(point)?;
            let mounted = rootfs::mount_disk(file, point);
            mounts.0.push(mounted.map_err(|error| Status::from_error(error.kind(), &error))?);
        }
        let layers: Vec<_> = self.container.layers.iter().map(|layer| LayerSource::File(layer.path.clone())).collect();
        let staging = self.work.join("layers");
        let files = match request {
            FilesRequest::Layer { .. } => {
                ContainerFiles { merged: root(upper)?, upper: Some(root(upper)?), lower: None, mounts: Vec::new() }
            }
            FilesRequest::Changes { .. } => {
                let lower = self.work.join("lower");
                make_folder(&lower)?;
                let mounted = rootfs::mount_layers(&layers, &staging, &lower);
                mounts.0.push(mounted.map_err(|error| Status::from_error(error.kind(), &error))?);
                ContainerFiles {
                    merged: root(upper)?,
                    upper: Some(root(upper)?),
                    lower: Some(root(&lower)?),
                    mounts: Vec::new(),
                }
            }
            _ => {
                if !self.live {
                    make_folder(merged)?;
                    let changes = Upper { upper: upper.clone(), work: work.clone() };
                    let mounted = rootfs::mount(&layers, &staging, &changes, merged);
                    mounts.0.push(mounted.map_err(|error| Status::from_error(error.kind(), &error))?);
                }
                ContainerFiles {
                    merged: joined(merged)?,
                    upper: None,
                    lower: None,
                    mounts: request.mounts().iter().map(attachment).collect::<Result<_, _>>()?,
                }
            }
        };
        Ok((files, mounts))
    }
}

/// What is mounted in a container whose root only a utility VM may mount, in a root that has nothing else and takes nothing.
fn mounts_alone(work: &Path, request: &FilesRequest) -> Result<ContainerFiles, Status> {
    let failed = |error: io::Error| Status::from_error(ErrorKind::Internal, &error);
    let merged = work.join("root");
    make_folder(&merged)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", &merged, "tmpfs", flags, None::<&CStr>).map_err(|error| failed(error.into()))?;
    let mut mounts = Vec::new();
    for mount in request.mounts() {
        let mounted = attachment(mount)?;
        mounted.make_point(&root(&merged)?).map_err(failed)?;
        mounts.push(mounted);
    }
    mount_remount(&merged, flags | MountFlags::RDONLY, "").map_err(|error| failed(error.into()))?;
    Ok(ContainerFiles { merged: root(&merged)?, upper: None, lower: None, mounts })
}

/// Clones a bind or a volume of the container. When: with mounts of our own, in which its path means something.
fn attachment(mount: &FilesMount) -> Result<Attachment, Status> {
    let what = format!("cannot mount what the container has at {}", mount.destination.display());
    let failed =
        |error: io::Error| Status { kind: ErrorKind::Internal, message: what.clone(), causes: vec![error.to_string()] };
    let source = mount.source.as_ref().ok_or_else(|| Status::new(ErrorKind::InvalidArgument, what.clone()))?;
    let opened = match &source.part {
        // That it is not there says nothing of the path that was asked for.
        Some(part) => {
            parts::find(&source.path, part).map_err(|status| Status { kind: ErrorKind::Internal, ..status })?
        }
        None => {
            open(&source.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| failed(error.into()))?
        }
    };
    Attachment::new(&opened, &mount.destination, source.read_only, source.recursive).map_err(failed)
}

/// What was mounted; unmounted on drop, the last one first, and not before nobody uses it: the disk may be mounted again as
/// soon as this process has ended.
#[derive(Default)]
struct Mounts(Vec<MountedRootfs>);

impl Drop for Mounts {
    fn drop(&mut self) {
        while let Some(mounted) = self.0.pop() {
            if let Err(error) = mounted.unmount() {
                tracing::error!(error = &error as &dyn std::error::Error, "a mount is left to the end of this process");
            }
        }
    }
}

fn make_folder(path: &Path) -> Result<(), Status> {
    std::fs::create_dir_all(path).map_err(|error| Status::from_error(ErrorKind::Internal, &error))
}

fn root(path: &Path) -> Result<Root, Status> {
    Root::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Status::new(ErrorKind::FailedPrecondition, "the container is not running any more"),
        _ => Status::from_error(ErrorKind::Internal, &error),
    })
}

/// The root of a container, and not the empty folder on which it was mounted.
fn joined(merged: &Path) -> Result<Root, Status> {
    let opened = root(merged)?;
    match rustix::fs::statfs(merged) {
        Ok(facts) if facts.f_type == OVERLAYFS_SUPER_MAGIC => Ok(opened),
        _ => Err(Status::new(ErrorKind::FailedPrecondition, "the container is not running any more")),
    }
}

/// Serves the operation in a utility VM that has the container's disks.
async fn with_vm(container: &ContainerBundle, work: &Path, socket: &UnixStream) -> Result<(), Status> {
    let invalid = |what: &str| Status::new(ErrorKind::InvalidArgument, what);
    let vm = container.utility_vm.as_ref().ok_or_else(|| invalid("the bundle says nothing about the utility VM"))?;
    let Writable::Scratch { disk } = &container.writable else {
        return Err(invalid("hyperv isolation needs a scratch disk"));
    };
    let layers: Vec<PathBuf> = container.layers.iter().map(|layer| layer.path.clone()).collect();
    let request = StartRequest {
        vm,
        scratch: disk.clone(),
        layers,
        run_dir: work.join("vm"),
        hostname: HOSTNAME.to_owned(),
        domainname: String::new(),
        cgroup: Some(container.cgroup.clone()),
        rehearsal: false,
        namespace: None,
        network: wire::Network::new(),
        pod: false,
    };
    let started = UtilityVm::start(request).await.map_err(|error| Status::from_error(error.kind(), &error));
    let served = match started {
        Ok(vm) => {
            let served = in_vm(&vm, socket).await;
            vm.kill();
            vm.wait().await;
            served
        }
        Err(status) => Err(status),
    };
    if let Err(error) = container::remove_cgroup(container.cgroup.as_ref()) {
        tracing::warn!(%error, "a cgroup is left behind");
    }
    served
}

async fn in_vm(vm: &UtilityVm, socket: &UnixStream) -> Result<(), Status> {
    let guest = vm.guest();
    let mut mount = MountRootRequest::new();
    mount.layers = vm.layer_devices();
    mount.scratch_slot = vm.scratch_slot();
    guest.mount_root(&mount).await.map_err(|error| error.to_status())?;
    let header = StreamHeader { kind: StreamKind::Files, process: OPERATION };
    let stream = guest.open_stream(header).await.map_err(|error| error.to_status())?;
    let taken = socket.try_clone().and_then(relay::into_tokio);
    let taken = taken.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
    relay::relay(taken, stream).await;
    // Without it the scratch disk is only as good as its journal.
    guest.shutdown(&Empty::new()).await.map(drop).map_err(|error| error.to_status())
}
