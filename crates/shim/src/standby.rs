//! What stands by for a hyperv container: a utility VM that was forked, has rehearsed, and is blank again; or no more than a
//! hypervisor's process that waits in its jail, where a fork is quick by itself.
//!
//! An emulated processor translates every piece of code when it runs for the first time, and a fork has run none: most of
//! a container's start is that. So a shim may be started before there is a container, with a bundle that is nobody's. It
//! forks a VM and takes it once through everything that a container's life consists of, then has the guest renew itself.
//! The container that comes gets this VM, personalized as strictly as any fork, and finds all code translated.
//!
//! ```text
//! prepare: fork ─▶ personalize ─▶ create, start, wait ─▶ renew ═ stands by ═▶ adopt: disks, personalize ─▶ the container's
//! ```

use std::time::Duration;

use proto::control::UtilityVmRequest;
use proto::gcs::{INIT_PROCESS, StreamHeader, StreamKind, wire};
use proto::{ErrorKind, Status};
use tokio::io::AsyncReadExt;
use uvm::{GuestError, StartRequest, UtilityVm, UvmError, VmExit, WaitingVmm};

use crate::bundle::{Bundle, BundleError};
use crate::network;
use crate::plan::{Plan, Seat};

/// The rehearsal's container, as the guest knows it.
const REHEARSAL_ID: &str = "rehearsal";
/// How long the rehearsal's process may take; it does nothing but end.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(30);
/// More output than the rehearsal's process could have.
const OUTPUT_BYTES: u64 = 64 << 10;

/// What stands by. Dropping it ends it.
pub enum Standby {
    /// A utility VM.
    Rehearsed(Box<Rehearsed>),
    /// A hypervisor's process.
    Waiting(WaitingVmm),
}

impl Standby {
    /// Makes what a bundle that is nobody's asks for; `None` where nothing of that can wait.
    ///
    /// # Errors
    /// As [`Rehearsed::prepare`].
    pub async fn prepare(bundle: &Bundle) -> Result<Option<Self>, Status> {
        if let Some(request) = bundle.waiting().map_err(|error| of_bundle(&error))? {
            return Self::wait(bundle, &request).await;
        }
        let plan = Plan::read(bundle, bundle.container().map_err(|error| of_bundle(&error))?)?;
        Ok(Some(Self::Rehearsed(Box::new(Rehearsed::prepare(bundle, plan).await?))))
    }

    /// Has a process wait for what asks for this; `None` where it cannot. Shape: the bundle takes what is written of it.
    ///
    /// # Errors
    /// What the bundle or the process say; no process stays.
    pub async fn wait(bundle: &Bundle, request: &UtilityVmRequest) -> Result<Option<Self>, Status> {
        let waiting = WaitingVmm::start(request, &bundle.vm_dir()).await;
        let waiting = waiting.map_err(|error| Status::from_error(error.kind(), &error))?;
        if let Some(waiting) = &waiting {
            bundle.write_processes(waiting.process_ids()).map_err(|error| of_bundle(&error))?;
        }
        Ok(waiting.map(Self::Waiting))
    }

    /// Process ids of the VMM's processes.
    #[must_use]
    pub fn vmm_pids(&self) -> &[u32] {
        match self {
            Self::Rehearsed(vm) => vm.vmm_pids(),
            Self::Waiting(process) => process.process_ids(),
        }
    }

    /// Answers when it has ended by itself, and is of no use any more. A process that waits is replaced by whoever finds it dead.
    pub async fn ended(&self) -> VmExit {
        match self {
            Self::Rehearsed(vm) => vm.ended().await,
            Self::Waiting(_) => std::future::pending().await,
        }
    }
}

/// A utility VM that has no container yet. Dropping it kills it.
pub struct Rehearsed {
    vm: UtilityVm,
    /// What it was made for.
    request: UtilityVmRequest,
}

impl Rehearsed {
    /// Forks a VM for the plan and rehearses its container. Shape: the bundle takes what is written of the VM. Nothing of either is
    /// used afterwards.
    ///
    /// # Errors
    /// What the bundle, the VM or the guest say; no VM stays.
    pub async fn prepare(bundle: &Bundle, plan: Plan) -> Result<Self, Status> {
        let request = StartRequest {
            rehearsal: true,
            cgroup: None,
            network: rehearsed_network(),
            ..plan.start_request(bundle.vm_dir())
        };
        let vm = UtilityVm::start(request).await.map_err(|error| Status::from_error(error.kind(), &error))?;
        bundle.write_processes(&vm.report().vmm_pids).map_err(|error| of_bundle(&error))?;
        if let Some(network) = &plan.network {
            network::tie(network.namespace.clone()).await?;
        }
        rehearse(&vm, &plan).await?;
        Ok(Self { vm, request: plan.vm })
    }

    /// True when a container that asks for this may have it.
    #[must_use]
    pub fn fits(&self, request: &UtilityVmRequest) -> bool {
        let UtilityVmRequest { machine_id, personalize_timeout_ms, disk_rates, .. } = &self.request;
        let like_ours = UtilityVmRequest {
            machine_id: machine_id.clone(),
            personalize_timeout_ms: *personalize_timeout_ms,
            disk_rates: *disk_rates,
            ..request.clone()
        };
        self.request == like_ours
    }

    /// Process ids of the VMM's processes.
    #[must_use]
    pub fn vmm_pids(&self) -> &[u32] {
        &self.vm.report().vmm_pids
    }

    /// Answers when it has ended by itself.
    pub async fn ended(&self) -> VmExit {
        self.vm.wait().await
    }

    /// Makes it the container's.
    ///
    /// # Errors
    /// As [`UtilityVm::adopt`]; it is destroyed then, and another can be forked for the same request.
    pub async fn adopt(self, request: StartRequest<'_>) -> Result<UtilityVm, UvmError> {
        self.vm.adopt(request).await
    }
}

fn of_bundle(error: &BundleError) -> Status {
    Status::from_error(error.kind(), error)
}

/// A network like most: what takes it on and off runs before a container needs it. Its tap is off all the while, and the
/// addresses are for documents (RFC 5737).
fn rehearsed_network() -> wire::Network {
    let mut interface = wire::NetworkInterface::new();
    interface.mac = vec![2, 0, 0, 0, 0, 1];
    interface.ipv4 = vec![192, 0, 2, 2];
    interface.ipv4_prefix = 24;
    interface.names = true;
    let mut network = wire::Network::new();
    network.interfaces.push(interface);
    network.gateway4 = vec![192, 0, 2, 1];
    network
}

async fn rehearse(vm: &UtilityVm, plan: &Plan) -> Result<(), Status> {
    let guest = vm.guest();
    let of_guest = |error: GuestError| error.to_status();
    let mut outputs = Vec::new();
    for kind in [StreamKind::Stdout, StreamKind::Stderr] {
        outputs.push(guest.open_stream(StreamHeader { kind, process: INIT_PROCESS }).await.map_err(of_guest)?);
    }
    guest
        .create_container(&plan.container_request(&Seat::alone(vm), REHEARSAL_ID, false, false)?)
        .await
        .map_err(of_guest)?;
    guest.start(&wire::StartRequest::new()).await.map_err(of_guest)?;
    let mut wait = wire::WaitRequest::new();
    wait.process = INIT_PROCESS;
    let late = |_| Status::new(ErrorKind::DeadlineExceeded, "the rehearsal's process does not end");
    let ended = tokio::time::timeout(REHEARSAL_LIMIT, guest.wait(&wait)).await.map_err(late)?.map_err(of_guest)?;
    if ended.exit_code != 0 {
        let message = format!("the rehearsal's process ended with {}", ended.exit_code.min(255));
        return Err(Status::new(ErrorKind::Internal, message));
    }
    // The image's own program was all that ran.
    vm.record_working_set().await;
    for output in outputs {
        let mut rest = Vec::new();
        let read = output.take(OUTPUT_BYTES).read_to_end(&mut rest).await;
        read.map_err(|error| Status::from_error(ErrorKind::Unavailable, &error))?;
    }
    let mut request = wire::RenewRequest::new();
    request.keep_interfaces = plan.network.is_some();
    guest.renew(&request).await.map(drop).map_err(of_guest)
}
