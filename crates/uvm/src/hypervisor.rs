//! The seam to what runs a machine. One contract, one test suite, however many backends.
//!
//! ```text
//!            boot                 resume              freeze
//!  (nothing) ----> [paused] <--------------> [running] ------> a frozen machine in files
//!            fork ----^    pause                |
//!                                               v kill, panic, shutdown
//!                                            [ended]: `wait` answers, for ever the same
//! ```

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use proto::ErrorKind;
use proto::control::DiskRates;
use proto::network::NetworkRates;
use tokio::net::UnixStream;
use vmm::protocol::PageRun;

use crate::disk::{DiskBinding, DiskError};
use crate::guest_image::GuestImage;
use crate::host_sockets::HostSockets;
use crate::key::BackendIdentity;
use crate::machine::MachineConfig;
use crate::network_slots::{NetworkSlots, NetworkSlotsError};
use crate::qmp::QmpError;

/// What went wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The hypervisor is not installed.
    #[error("{program} is not installed: install Debian's package {package} (apt-get install {package})")]
    NotInstalled {
        /// The program that was looked for.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Our own VMM's program is not where it is looked for.
    #[error("{program} is neither beside this program nor in the path: `make build` makes it")]
    NoVmm {
        /// The program that was looked for.
        program: &'static str,
    },
    /// The hypervisor is there, but does not say what it is.
    #[error("{} does not tell its version: {output:?}", .program.display())]
    UnknownVersion {
        /// The program.
        program: PathBuf,
        /// What it printed, cut.
        output: String,
    },
    /// Its process cannot be started.
    #[error("cannot start {}", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended when it should not.
    #[error("the hypervisor ended while {during}: {detail}")]
    Ended {
        /// What it was doing.
        during: &'static str,
        /// Exit status and what it printed last.
        detail: String,
    },
    /// It refused a command.
    #[error("the hypervisor failed while {during}")]
    Command {
        /// What it was doing.
        during: &'static str,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// It says that it failed.
    #[error("the hypervisor failed while {during}: {detail}")]
    Failed {
        /// What it was doing.
        during: &'static str,
        /// What it said.
        detail: String,
    },
    /// The frozen state could not be written or loaded.
    #[error("the machine's state could not be {verb}: {detail}")]
    State {
        /// `saved` or `loaded`.
        verb: &'static str,
        /// What the hypervisor said.
        detail: String,
    },
    /// It took too long.
    #[error("{during} took longer than {limit_s} s{detail}")]
    Deadline {
        /// What it was doing.
        during: &'static str,
        /// The limit, seconds.
        limit_s: u64,
        /// What the guest printed last, or nothing.
        detail: String,
    },
    /// A disk for a slot is unfit.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There can be nothing behind the network slots.
    #[error(transparent)]
    Network(#[from] NetworkSlotsError),
    /// A file or socket of ours failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection to the guest was taken before.
    #[error("the machine's port is in use")]
    PortTaken,
    /// This backend cannot limit a network.
    #[error("rates of networks need our own VMM (backend kvm): QEMU has none")]
    NoNetworkRates,
    /// This machine has no socket device.
    #[error(
        "a vsock needs a utility VM of our own VMM (backend kvm) with one container in it: QEMU's have none, nor have pods'; \
         leave annotation {} out",
        proto::vsock::VSOCK_ANNOTATION
    )]
    NoVsock,
}

impl HypervisorError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotInstalled { .. } | Self::NoVmm { .. } | Self::Network(_) => ErrorKind::FailedPrecondition,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Disk(disk) => disk.kind(),
            Self::PortTaken => ErrorKind::Conflict,
            Self::NoNetworkRates | Self::NoVsock => ErrorKind::NotImplemented,
            Self::UnknownVersion { .. }
            | Self::Spawn { .. }
            | Self::Ended { .. }
            | Self::Command { .. }
            | Self::Failed { .. }
            | Self::State { .. }
            | Self::Io { .. } => ErrorKind::Internal,
        }
    }
}

/// Why a machine is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest's kernel panicked (or the guest reset the machine, which nothing in it does otherwise).
    GuestPanic,
    /// [`VirtualMachine::kill`], or its owner was dropped.
    Killed,
    /// The guest switched the machine off.
    Shutdown,
    /// The hypervisor's process ended by itself or by somebody else's signal; its wait status, if anybody knows it.
    Exited(Option<i32>),
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// Why.
    pub reason: ExitReason,
    /// What is known beyond that: the panic's last lines, the hypervisor's last words. May be empty; hostile text,
    /// bounded, control characters removed.
    pub detail: String,
}

/// What a fork has behind its disk slots. Shape: at most [`crate::DISK_SLOTS`] disks.
#[derive(Debug, Clone)]
pub struct SlotBindings {
    /// Slot 0: the writable disk.
    pub scratch: Option<DiskBinding>,
    /// The read-only layers, lowest first. Up to three have a slot each (1 to 3); more share slot 1 as partitions.
    pub layers: Vec<PathBuf>,
    /// How fast all of them together may be.
    pub rates: DiskRates,
}

/// What one slot of a pod's machine is to have behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotBinding {
    /// Nothing any more.
    Nothing,
    /// A disk to write.
    Scratch(PathBuf),
    /// Layers, lowest first, as partitions of one disk.
    Layers(Vec<PathBuf>),
}

impl SlotBindings {
    /// Nothing behind any slot.
    #[must_use]
    pub fn nothing() -> Self {
        Self { scratch: None, layers: Vec::new(), rates: DiskRates::default() }
    }

    /// True when the layers are partitions of the disk in slot 1.
    #[must_use]
    pub fn packed(&self) -> bool {
        self.layers.len() > crate::machine::DISK_SLOTS as usize - 1
    }
}

/// A frozen machine: both files opened for reading. They may be unlinked while a fork runs.
#[derive(Debug)]
pub struct FrozenMachine {
    /// All of its memory, sparse, exactly as long as the machine's memory.
    pub memory: File,
    /// Processors and devices, in the backend's own format.
    pub state: File,
    /// Pages of the memory that a fork writes first of all; none where that is not known, or the backend has no use for it.
    pub working_set: Vec<PageRun>,
}

/// Makes machines. When: all methods may be called from several tasks at once.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What goes into the template's key for this backend.
    fn identity(&self) -> &BackendIdentity;

    /// True if its forks take a [`FrozenMachine::working_set`].
    fn takes_working_sets(&self) -> bool {
        false
    }

    /// Makes a machine that will boot `image`, paused before its first instruction. Its slots exist with nothing behind
    /// them. Its memory is the file `memory`, shared, so that what the guest writes is there.
    ///
    /// Shape: `run_dir` takes logs; `memory` is opened for reading and writing and as long as the machine's memory.
    ///
    /// # Errors
    /// [`HypervisorError`]; nothing of the machine is left then.
    async fn boot(
        &self,
        image: &GuestImage,
        config: &MachineConfig,
        memory: File,
        run_dir: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError>;

    /// Begins the next fork, as far as it needs no template, so that it goes on beside what its maker does before
    /// [`Hypervisor::fork`]. Answers with the processes that it has made. When: once before a fork, of a machine of this size; one that
    /// never comes costs nothing once `self` is dropped.
    ///
    /// # Errors
    /// [`HypervisorError`].
    async fn prepare(&self, config: &MachineConfig, run_dir: &Path) -> Result<Vec<u32>, HypervisorError>;

    /// Makes a copy of a frozen machine, paused, with other disks behind its slots, and taps behind its network slots. The
    /// frozen files are never written. What the guest dirties is the fork's own.
    ///
    /// Shape: `config` is the one that the machine was booted with.
    ///
    /// # Errors
    /// [`HypervisorError`]; nothing of the fork is left then.
    async fn fork(
        &self,
        frozen: FrozenMachine,
        config: &MachineConfig,
        slots: &SlotBindings,
        network: &NetworkSlots,
        run_dir: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError>;
}

/// A machine. Dropping it kills it.
#[async_trait]
pub trait VirtualMachine: Send + Sync {
    /// Takes the host's end of the machine's port: the byte stream to the guest, connected since before the machine
    /// existed. When: once.
    ///
    /// # Errors
    /// [`HypervisorError::PortTaken`] the second time.
    fn connect(&self) -> Result<UnixStream, HypervisorError>;

    /// Takes the host's end of the machine's file system: a byte stream of FUSE requests, each with its length in front, to be
    /// answered in order. Nothing where the backend has no such device. When: once; nothing afterwards.
    fn file_server(&self) -> Option<OwnedFd> {
        None
    }

    /// Brings the host's side of the machine's socket device into use: sockets in `folder`, for root alone. When: once, within the
    /// runtime.
    ///
    /// # Errors
    /// [`HypervisorError::NoVsock`] where the machine has no such device, or it is in use; [`HypervisorError::Io`].
    fn host_sockets(&self, _folder: &Path) -> Result<HostSockets, HypervisorError> {
        Err(HypervisorError::NoVsock)
    }

    /// Lets the processors run. When: paused; running already is no error.
    ///
    /// # Errors
    /// [`HypervisorError`] when the machine has ended or does not answer.
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Stops the processors between two instructions; answers when they stand. When: running; paused is no error.
    ///
    /// # Errors
    /// As [`VirtualMachine::resume`].
    async fn pause(&self) -> Result<(), HypervisorError>;

    /// Puts other disks behind the slots, all of them. When: the guest uses none of its disks; what it remembers of the
    /// earlier ones is for the guest to forget.
    ///
    /// # Errors
    /// [`HypervisorError`]; what is behind the slots is then undefined, and the machine of no use.
    async fn rebind(&self, slots: &SlotBindings) -> Result<(), HypervisorError>;

    /// Puts another disk behind one slot; the others stay. When: as [`VirtualMachine::rebind`], of this slot.
    ///
    /// # Errors
    /// [`HypervisorError::Disk`], before anything has changed; otherwise what is behind the slot is undefined.
    async fn rebind_slot(&self, slot: u32, binding: &SlotBinding) -> Result<(), HypervisorError>;

    /// Limits how fast a network slot may be, from now on. When: any time; a new machine has no limits.
    ///
    /// # Errors
    /// [`HypervisorError::NoNetworkRates`] where the backend has none, unless there is to be no limit.
    async fn limit_network(&self, slot: u32, rates: NetworkRates) -> Result<(), HypervisorError>;

    /// Stops the machine, writes everything but its memory to `state`, and ends it: memory file and `state` together
    /// are the frozen machine.
    ///
    /// # Errors
    /// [`HypervisorError`]; the machine is gone either way.
    async fn freeze(self: Box<Self>, state: File) -> Result<(), HypervisorError>;

    /// Ends the machine at once. When: any state; does not wait (see [`VirtualMachine::wait`]).
    fn kill(&self);

    /// Answers when the machine has ended and its process is reaped. When: from any number of tasks, at any time.
    async fn wait(&self) -> VmExit;

    /// The host's processes that are this machine.
    fn process_ids(&self) -> Vec<u32>;

    /// What the guest printed on its console last, at most 64 KiB, control characters removed: hostile text.
    async fn console(&self) -> String;

    /// Stops the machine and says where its processors and devices stand, for whoever wants to know why its guest does not go
    /// on: hostile text, at most 2000 characters. Nothing where the backend cannot say.
    async fn standing(&self) -> String {
        String::new()
    }
}
