//! One container of this utility VM: its root file system on the slots' disks, and its first process.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use container::rootfs::{self, LayerSource, MountedRootfs, RootfsError, Upper};
use container::seccomp::Filter;
use container::{
    Blueprint, CgroupError, Container, CreateError, DeleteError, ExecError, Helper, HelperError, PlainBlueprint,
    StartError, Started, Stdio, ZygoteError,
};
use proto::ErrorKind;
use proto::gcs::wire::{CreateContainerRequest, ExecRequest, LayerDevice};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::bundle::{self, BundleError};
use crate::devices::{SlotError, Slots};
use crate::identity;
use crate::machine::{Machine, Spare};
use crate::places::{MERGED, Places, RUN, STATE};
use crate::process::{Attendants, Prepared, Process, TerminalSize};
use crate::shares::{self, SharedMount, Shares};
use crate::substreams::StdioStreams;

/// A call about the container that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A disk cannot be used.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The scratch disk cannot be mounted or unmounted.
    #[error("cannot {what} the scratch disk")]
    Scratch {
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The layers cannot be put together.
    #[error("cannot mount the container's root file system")]
    Rootfs(#[from] RootfsError),
    /// The spec cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The container was not created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its process was not started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A further process was not started.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A process that is to wait for a container could not be started.
    #[error(transparent)]
    Prepare(#[from] ZygoteError),
    /// The container was not removed.
    #[error("cannot remove the container")]
    Delete(#[from] DeleteError),
    /// A folder of the host cannot be mounted or unmounted.
    #[error("cannot mount or unmount a folder of the host")]
    Share(#[source] io::Error),
    /// The standard streams of a process.
    #[error("cannot connect the process's standard streams")]
    Stdio(#[source] io::Error),
    /// A container number that is not known, or known already.
    #[error("container {number} {problem}")]
    Container {
        /// The host's number.
        number: u32,
        /// What is wrong with it.
        problem: &'static str,
        /// What a caller can act on.
        kind: ErrorKind,
    },
    /// Its folders cannot be made.
    #[error("cannot make {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A process number that is not known, or known already.
    #[error("process {number} {problem}")]
    Process {
        /// The host's number.
        number: u32,
        /// What is wrong with it.
        problem: &'static str,
        /// What a caller can act on.
        kind: ErrorKind,
    },
    /// The kernel refused a signal or a new size.
    #[error("cannot {what} process {number}")]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// The host's number.
        number: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl ComputeError {
    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Slot(error) => error.kind(),
            Self::Rootfs(error) => error.kind(),
            Self::Bundle(error) => error.kind(),
            Self::Create(error) => error.kind(),
            Self::Start(error) => error.kind(),
            Self::Exec(error) => error.kind(),
            Self::Prepare(error) => error.kind(),
            Self::Delete(error) => error.kind(),
            Self::Process { kind, .. } | Self::Container { kind, .. } => *kind,
            Self::Scratch { .. } | Self::Share(_) => ErrorKind::Unavailable,
            Self::Stdio(_) => ErrorKind::ResourceExhausted,
            Self::Kernel { source, .. } if source.kind() == io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            Self::Kernel { source, .. } if source.kind() == io::ErrorKind::NotConnected => ErrorKind::NotFound,
            Self::Kernel { .. } | Self::Folder { .. } => ErrorKind::Internal,
        }
    }
}

/// A container and all it consists of.
pub struct Compute {
    container: Container,
    first: (u32, Arc<Process>),
    /// Before the scratch: what is dropped first is unmounted first.
    rootfs: MountedRootfs,
    shares: Shares,
    shared: Vec<SharedMount>,
    scratch: Scratch,
    layers: Vec<LayerSource>,
    disks: BTreeSet<u32>,
    places: Places,
}

impl Compute {
    /// Mounts layers and scratch and creates the container in them, not started.
    ///
    /// # Errors
    /// See [`ComputeError`]; what was mounted is unmounted again.
    pub fn create(
        request: &CreateContainerRequest,
        streams: StdioStreams,
        shares: Shares,
        machine: &mut Machine,
        attendants: &Attendants,
    ) -> Result<Self, ComputeError> {
        let Machine { slots, spare } = machine;
        let places = Places::of(request.container);
        places.make().map_err(|(path, source)| ComputeError::Folder { path, source })?;
        let (rootfs, scratch, layers) = mount_root(&places, &request.layers, request.scratch_slot, slots)?;
        let size = terminal_size(request.terminal, request.width, request.height);
        let (prepared, stdio) = Prepared::new(streams, size).map_err(ComputeError::Stdio)?;
        let (container, started) = if request.plain.is_empty() {
            create_from_spec(request, &places, spare, stdio)?
        } else {
            create_of_zygote(request, spare, stdio)?
        };
        let first = attach(started, prepared, attendants)?;
        let shared = shares::shared_mounts(&request.spec);
        let first = (request.process, Arc::new(first));
        let disks = disks(request);
        Ok(Self { container, first, rootfs, shares, shared, scratch, layers, disks, places })
    }

    /// Starts the created process.
    ///
    /// # Errors
    /// `Start`.
    pub fn start(&mut self) -> Result<(), ComputeError> {
        Ok(self.container.start()?)
    }

    /// Starts a further process.
    ///
    /// # Errors
    /// `Bundle`, `Exec`, `Stdio`, `Helper`.
    pub fn exec(
        &self,
        request: &ExecRequest,
        streams: StdioStreams,
        spare: &mut Spare,
        attendants: &Attendants,
    ) -> Result<Process, ComputeError> {
        let process = bundle::process(&request.spec)?;
        let size = terminal_size(request.terminal, request.width, request.height);
        let (prepared, stdio) = Prepared::new(streams, size).map_err(ComputeError::Stdio)?;
        let helper = spare.exec_helper.take().map_or_else(Helper::spawn, Ok).map_err(ExecError::Helper)?;
        let started = self.container.exec(helper, &process, stdio)?;
        attach(started, prepared, attendants)
    }

    /// The container itself, for what needs nothing else of the guest.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Its first process, with the host's number.
    pub fn first(&self) -> (u32, &Arc<Process>) {
        (self.first.0, &self.first.1)
    }

    /// The host's folders in it.
    pub fn shared(&self) -> &[SharedMount] {
        &self.shared
    }

    /// Its layers, lowest first.
    pub fn layers(&self) -> &[LayerSource] {
        &self.layers
    }

    /// The slots of its disks.
    pub fn disks(&self) -> BTreeSet<u32> {
        self.disks.clone()
    }

    /// Removes the container, whose processes have been killed, and leaves a clean scratch disk.
    ///
    /// # Errors
    /// `Delete`, `Rootfs`, `Share`, `Scratch`.
    pub fn remove(self) -> Result<(), ComputeError> {
        let Self { container, rootfs, shares, scratch, places, .. } = self;
        container.delete(true)?;
        rootfs.unmount()?;
        shares.unmount().map_err(ComputeError::Share)?;
        scratch.unmount()?;
        places.remove();
        Ok(())
    }
}

/// The slots of a container's disks.
pub fn disks(request: &CreateContainerRequest) -> BTreeSet<u32> {
    request.layers.iter().map(|layer| layer.slot).chain([request.scratch_slot]).collect()
}

fn attach(started: Started, prepared: Prepared, attendants: &Attendants) -> Result<Process, ComputeError> {
    let pid = started.pid;
    Process::attach(started, prepared, attendants).map_err(|error| {
        // Nobody could ever read from it.
        let _ = signal_pid(pid, 9);
        ComputeError::Stdio(error)
    })
}

/// Makes a machine again from what a removed container leaves, as if it never had one.
///
/// # Errors
/// `Slot` — a disk is still in use; `Bundle`, `Prepare`.
pub fn renew(machine: Machine) -> Result<Machine, ComputeError> {
    let Machine { mut slots, spare } = machine;
    bundle::clear()?;
    slots.forget(|_| true)?;
    Ok(Machine { slots, spare: spare.complete()? })
}

type Created = (Container, Started);

fn create_from_spec(
    request: &CreateContainerRequest,
    places: &Places,
    spare: &mut Spare,
    stdio: Stdio,
) -> Result<Created, ComputeError> {
    identity::give_machine_id(&places.merged);
    let spec = bundle::take(&request.spec, places)?;
    let compiled = Some(request.seccomp.as_slice()).filter(|bytes| !bytes.is_empty());
    let seccomp = compiled.map(Filter::from_bytes).transpose().map_err(CreateError::Spec)?;
    let blueprint = Blueprint { spec, seccomp, bundle: RUN.into() };
    let helper = spare.create_helper.take().map_or_else(Helper::spawn, Ok).map_err(CreateError::Helper)?;
    Ok(Container::create_from(helper, Path::new(STATE), &request.id, blueprint, stdio)?)
}

fn create_of_zygote(
    request: &CreateContainerRequest,
    spare: &mut Spare,
    stdio: Stdio,
) -> Result<Created, ComputeError> {
    let root = open_tree(rustix::fs::CWD, MERGED, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(|error| RootfsError::Join { path: MERGED.into(), source: error.into() })?;
    let zygote = spare.zygotes.pop().ok_or(CreateError::Helper(HelperError::Died))?;
    let blueprint = PlainBlueprint { specialization: request.plain.clone(), seccomp: request.seccomp.clone(), root };
    let (container, started) = Container::specialize(zygote, Path::new(STATE), &request.id, blueprint, stdio)?;
    if let Err(error) = limit(&container, &request.resources) {
        if let Err(left) = container.delete(true) {
            tracing::warn!("a container without its limits is left: {left}");
        }
        return Err(error);
    }
    Ok((container, started))
}

fn limit(container: &Container, resources: &[u8]) -> Result<(), ComputeError> {
    if resources.is_empty() {
        return Ok(());
    }
    let resources = serde_json::from_slice(resources)
        .map_err(|source| BundleError::Malformed { what: "list of limits", source })?;
    container.update(&resources).map_err(|error: CgroupError| CreateError::Cgroup(error).into())
}

/// Sends a signal.
///
/// # Errors
/// The kernel's; `InvalidInput` for what is no signal.
pub fn signal_pid(pid: u32, signal: u32) -> io::Result<()> {
    let signal = i32::try_from(signal).ok().and_then(Signal::from_named_raw);
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let (Some(signal), Some(pid)) = (signal, pid) else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok(kill_process(pid, signal)?)
}

fn terminal_size(terminal: bool, width: u32, height: u32) -> Option<TerminalSize> {
    let clamp = |characters: u32| u16::try_from(characters).unwrap_or(u16::MAX);
    terminal.then(|| TerminalSize { width: clamp(width), height: clamp(height) })
}

/// Mounts layers, named top first, and scratch; the layers are given back lowest first.
///
/// # Errors
/// `Slot`, `Scratch`, `Rootfs`; nothing stays mounted.
pub fn mount_root(
    places: &Places,
    layers: &[LayerDevice],
    scratch_slot: u32,
    slots: &mut Slots,
) -> Result<(MountedRootfs, Scratch, Vec<LayerSource>), ComputeError> {
    let scratch = Scratch::mount(&slots.device(scratch_slot, 0)?, &places.scratch)?;
    // The request names the top layer first, the container crate wants the lowest first.
    let layers = layers.iter().rev().map(|layer| slots.device(layer.slot, layer.partition));
    let layers: Vec<LayerSource> = layers.map(|device| device.map(LayerSource::Device)).collect::<Result<_, _>>()?;
    let upper = Upper { upper: places.upper(), work: places.scratch.join("work") };
    let rootfs = rootfs::mount(&layers, &places.staging, &upper, &places.merged)?;
    Ok((rootfs, scratch, layers))
}

/// ext4's options for the scratch, not known before Linux 5.13. What is freed goes back to the host, whose file is sparse. Without
/// the others the kernel starts a thread, `ext4lazyinit`, which
/// reads ahead the maps of free blocks of the whole disk, and then writes zeros where mkfs has written no inodes. A container
/// reads the few maps that it needs, and mkfs has left nothing to zero: it has taken the host's sparse file for zeros.
const SCRATCH_OPTIONS: &CStr = c"discard,no_prefetch_block_bitmaps,noinit_itable";

/// The mounted scratch disk; unmounted on drop.
pub struct Scratch(PathBuf);

impl Scratch {
    fn mount(device: &Path, point: &Path) -> Result<Self, ComputeError> {
        let mount_with = |options| mount(device, point, "ext4", MountFlags::empty(), options);
        mount_with(Some(SCRATCH_OPTIONS))
            .or_else(|error| if error == Errno::INVAL { mount_with(None) } else { Err(error) })
            .map_err(|error| ComputeError::Scratch { what: "mount", source: error.into() })?;
        Ok(Self(point.to_owned()))
    }

    /// Unmounts it, so that it is clean.
    ///
    /// # Errors
    /// `Scratch`.
    pub fn unmount(mut self) -> Result<(), ComputeError> {
        let mounted = std::mem::take(&mut self.0);
        unmount(&mounted, UnmountFlags::empty())
            .map_err(|error| ComputeError::Scratch { what: "unmount", source: error.into() })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(error) = unmount(&self.0, UnmountFlags::empty())
        {
            tracing::warn!("cannot unmount the scratch disk: {error}");
        }
    }
}
