//! The seam between the Task service and what runs a container.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use oci_spec::runtime::LinuxResources;
use proto::control::ContainerBundle;
use proto::network::NetworkUpdate;
use proto::{ContainerId, ProcessDetails, Status};

use crate::bundle::Bundle;
use crate::metrics::Usage;
use crate::standby::Standby;
use crate::state::Exit;
use crate::stdio::StdioPaths;

/// A container, however isolated.
///
/// The Task service sees only this: it calls in the order create (a constructor of the implementation), `start`, the rest,
/// `delete`, and keeps the states of the processes itself. Every error is a [`Status`] whose kind says what a caller can do.
#[async_trait]
pub trait ComputeSystem: Send + Sync {
    /// The container's first process.
    fn init(&self) -> Arc<dyn Process>;

    /// Starts the first process. When: once, after creation.
    async fn start(&self) -> Result<(), Status>;

    /// Starts one more process. When: while the first one runs. `NotFound` and `PermissionDenied` mean the command.
    async fn exec(&self, exec: ExecRequest) -> Result<Arc<dyn Process>, Status>;

    /// Signals every process. When: before `delete`.
    async fn signal_all(&self, signal: i32) -> Result<(), Status>;

    /// Freezes every process. When: running.
    async fn pause(&self) -> Result<(), Status>;

    /// Undoes [`ComputeSystem::pause`].
    async fn resume(&self) -> Result<(), Status>;

    /// Every process, as ps(1) shows it. When: running.
    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status>;

    /// What it uses. When: before `delete`.
    async fn stats(&self) -> Result<Usage, Status>;

    /// Changes it while it runs. When: before `delete`.
    async fn update(&self, update: Update) -> Result<(), Status>;

    /// Waits until the kernel has killed more of its processes for want of memory than `seen`, and answers how many. `None` when
    /// nothing more is told before the end: it has ended, or cannot tell. When: one caller at a time.
    async fn oom_kills_after(&self, seen: u64) -> Option<u64>;

    /// Kills what is left and gives everything back. When: after the first process's end, or before its start. May be
    /// repeated after a failure.
    async fn delete(&self, changes: Changes) -> Result<(), Status>;
}

/// A change of a container that runs.
#[derive(Debug, Clone)]
pub enum Update {
    /// Its limits.
    Limits(Box<LinuxResources>),
    /// The network of a hyperv container; that of a process container is changed without asking the shim.
    Network(Box<NetworkUpdate>),
}

/// What becomes of a container's changes to its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// They are complete and in order on the disk when [`ComputeSystem::delete`] answers.
    Kept,
    /// Nobody will read them, so nothing is waited for.
    Discarded,
}

/// One process in a container.
#[async_trait]
pub trait Process: Send + Sync {
    /// Its number for the outside: on the host for a process container; for a hyperv container the VMM's (first process) or
    /// the guest's.
    fn pid(&self) -> u32;

    /// Sends a signal. `NotFound` when it has ended.
    async fn signal(&self, signal: i32) -> Result<(), Status>;

    /// Sets the size of its terminal; `FailedPrecondition` without one.
    async fn resize(&self, width: u32, height: u32) -> Result<(), Status>;

    /// Ends its input. May be repeated.
    fn close_stdin(&self);

    /// Waits for its end. When: once.
    async fn exited(&self) -> Exit;

    /// Waits until all its output has reached the caller's fifos. When: after `exited`.
    async fn output_complete(&self);
}

/// What a new container is made from.
pub struct CreateInput {
    /// Its identifier.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: Bundle,
    /// What our engine says about it; `None` for a foreign containerd's.
    pub container: Option<ContainerBundle>,
    /// Its streams.
    pub stdio: StdioPaths,
    /// What a foreign containerd's snapshotter wants mounted as its root.
    pub rootfs: Vec<Mount>,
    /// A process to create it with.
    pub helper: Option<container::Helper>,
    /// Waits for a hyperv container; one forks a VM of its own without.
    pub standby: Option<Standby>,
}

/// A further process of a container.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// What to run.
    pub process: Box<oci_spec::runtime::Process>,
    /// Where its streams go.
    pub stdio: StdioPaths,
}
