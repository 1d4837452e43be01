//! Hyperv isolation: a container in a utility VM of its own, by the `uvm` crate.
//!
//! The VM lives from Create to Delete. Its guest's word about the container counts while the VM runs; when the VM ends by
//! itself (its kernel panicked, somebody killed the VMM), every process in it has ended too.

pub mod guest_process;
pub mod worker;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use oci_spec::runtime::LinuxResources;
use proto::control::Accelerator;
use proto::gcs::wire;
use proto::network::{NetworkUpdate, SandboxNetwork};
use proto::{ErrorKind, ProcessDetails, Status};
use uvm::{GuestConnection, HostSockets, UtilityVm};

use crate::bundle::Bundle;
use crate::compute::{Changes, ComputeSystem, CreateInput, ExecRequest, Process, Update};
use crate::files::relay::FilesRelay;
use crate::metrics::Usage;
use crate::network;
use crate::plan::{Plan, Seat};
use crate::shares::Shares;
use crate::standby::{Rehearsed, Standby};
use crate::stdio::Fifos;
use guest_process::{Caller, GuestProcess};
use worker::{Worker, connect};

/// The guest's number for a VM's one container.
const ONLY: u32 = 0;
/// How long the guest may take to give its disk back in order.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);
/// A container in a utility VM.
pub struct HypervSystem {
    worker: Arc<Worker>,
    guest: GuestConnection,
    init: Arc<GuestProcess>,
    vm_dir: PathBuf,
    /// For its volumes and binds.
    shares: Mutex<Shares>,
    /// What it is on.
    network: tokio::sync::Mutex<Option<SandboxNetwork>>,
    /// For operations on the container's files.
    _files: FilesRelay,
    /// For programs of the host that speak to the container's, if it asks for that.
    _sockets: Option<HostSockets>,
}

impl HypervSystem {
    /// Forks a utility VM, or takes the one that stands by, and creates the container in it; its first process then waits
    /// to be started.
    ///
    /// # Errors
    /// What is wrong with the bundle, the streams, the VM or the container; nothing stays.
    pub async fn create(input: CreateInput) -> Result<Self, Status> {
        let CreateInput { id, bundle, container, stdio, standby, .. } = input;
        let mut plan = Plan::read(&bundle, container)?;
        let fifos = Fifos::open(&stdio).await.map_err(|error| Status::from_error(error.kind(), &error))?;
        if let Some(namespace) = &plan.foreign_namespace {
            plan.network = network::take_over(namespace.clone()).await?;
        }
        let worker = Arc::new(start_vm(&bundle, &plan, standby).await?);
        let created = async {
            let report = worker.vm.report();
            bundle.write_utility_vm(report).map_err(|error| Status::from_error(error.kind(), &error))?;
            bundle.write_processes(&report.vmm_pids).map_err(|error| Status::from_error(error.kind(), &error))?;
            let sockets = plan.vsock.then(|| worker.vm.host_sockets(bundle.path())).transpose();
            let sockets = sockets.map_err(|error| Status::from_error(error.kind(), &error))?;
            let make = async {
                let shares = Shares::serve_alone(&worker.vm, &plan.shares, &plan.cgroup).await?;
                let caller = Caller { stdio: &stdio, fifos };
                let seat = Seat { file_system: shares.by_device(), ..Seat::alone(&worker.vm) };
                let init = GuestProcess::create(&worker, id.as_str(), &plan, &seat, caller).await?;
                Ok::<_, Status>((shares, init))
            };
            // None of the container's processes runs before both are there.
            let ((), (shares, init)) = tokio::try_join!(connect(&worker.vm, plan.network.as_ref()), make)?;
            worker.vm.record_working_set().await;
            let files = FilesRelay::start(bundle.path(), worker.vm.guest().clone());
            Ok((init, shares, files.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?, sockets))
        };
        match created.await {
            Ok((init, shares, files, sockets)) => Ok(Self {
                shares: Mutex::new(shares),
                network: tokio::sync::Mutex::new(plan.network),
                guest: worker.vm.guest().clone(),
                worker,
                init: Arc::new(init),
                vm_dir: bundle.vm_dir(),
                _files: files,
                _sockets: sockets,
            }),
            Err(status) => {
                if let Err(left) = worker.destroy().await {
                    tracing::error!(%left, "a utility VM is left behind");
                }
                Err(status)
            }
        }
    }
}

impl HypervSystem {
    /// What executes its VM.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.worker.vm.report().accelerator
    }
}

/// What ps(1) shows, as the guest says it.
#[must_use]
pub fn details(response: wire::ProcessesResponse) -> Vec<ProcessDetails> {
    let details = response.processes.into_iter().map(|entry| ProcessDetails {
        pid: entry.pid,
        parent: entry.parent,
        user_id: entry.user_id,
        terminal: entry.terminal,
        started_at_ns: entry.started_at_ns,
        cpu_ms: entry.cpu_ms,
        command: entry.command,
    });
    details.collect()
}

/// Changes a container's limits.
///
/// # Errors
/// What the guest says.
pub async fn limit(guest: &GuestConnection, container: u32, resources: &LinuxResources) -> Result<(), Status> {
    let mut request = wire::UpdateRequest::new();
    request.container = container;
    request.resources =
        serde_json::to_vec(resources).map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
    guest.update(&request).await.map(drop).map_err(|error| error.to_status())
}

/// Waits for more kills for want of memory in a container than `seen`.
///
/// What a guest says is hostile: a number that has not grown is its last word, and the caller asks again only when it likes.
pub async fn oom_kills_after(guest: &GuestConnection, container: u32, seen: u64) -> Option<u64> {
    let request = wire::WaitOomKillRequest { container, seen, ..wire::WaitOomKillRequest::default() };
    let answer = guest.wait_oom_kill(&request).await;
    let answer = answer.inspect_err(|error| tracing::info!(%error, "a lack of memory is told with the end only"));
    answer.ok().map(|answer| answer.kills).filter(|&kills| kills > seen)
}

impl HypervSystem {
    /// One change at a time.
    async fn change_network(&self, update: NetworkUpdate) -> Result<(), Status> {
        let mut now = self.network.lock().await;
        network::change(&self.worker.vm, now.as_ref(), &update).await?;
        *now = Some(update.network);
        Ok(())
    }
}

async fn start_vm(bundle: &Bundle, plan: &Plan, standby: Option<Standby>) -> Result<Worker, Status> {
    let (rehearsed, waiting) = match standby {
        Some(Standby::Rehearsed(rehearsed)) => (Some(*rehearsed), None),
        Some(Standby::Waiting(waiting)) => (None, Some(waiting)),
        None => (None, None),
    };
    if let Some(vm) = adopt(bundle, plan, rehearsed).await {
        return Ok(Worker::of(vm, plan.cgroup.clone(), plan.foreign_namespace.clone()));
    }
    let request = plan.start_request(bundle.vm_dir());
    worker::start(waiting, request, &plan.cgroup, plan.foreign_namespace.as_ref()).await
}

/// The VM that stands by, if there is one and it serves. Nothing of the container depends on it: without it one is forked.
async fn adopt(bundle: &Bundle, plan: &Plan, standby: Option<Rehearsed>) -> Option<UtilityVm> {
    let standby = standby?;
    if !standby.fits(&plan.vm) {
        tracing::info!("the utility VM that stood by is not what this container asks for");
        return None;
    }
    match standby.adopt(plan.start_request(bundle.vm_dir())).await {
        Ok(vm) => Some(vm),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the utility VM that stood by is of no use");
            None
        }
    }
}

#[async_trait]
impl ComputeSystem for HypervSystem {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as Arc<dyn Process>
    }

    async fn start(&self) -> Result<(), Status> {
        self.guest.start(&wire::StartRequest::new()).await.map(drop).map_err(|error| error.to_status())
    }

    async fn exec(&self, exec: ExecRequest) -> Result<Arc<dyn Process>, Status> {
        Ok(Arc::new(GuestProcess::exec(&self.worker, ONLY, exec).await?))
    }

    async fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.init.send_signal(signal, true).await
    }

    async fn pause(&self) -> Result<(), Status> {
        self.worker.vm.pause().await.map_err(|error| Status::from_error(error.kind(), &error))
    }

    async fn resume(&self) -> Result<(), Status> {
        self.worker.vm.resume().await.map_err(|error| Status::from_error(error.kind(), &error))
    }

    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status> {
        let response = self.guest.processes(&wire::ContainerRequest::new()).await.map_err(|error| error.to_status())?;
        Ok(details(response))
    }

    async fn stats(&self) -> Result<Usage, Status> {
        let response = self.guest.stats(&wire::ContainerRequest::new()).await.map_err(|error| error.to_status())?;
        Ok(Usage::Guest(Box::new(response)))
    }

    async fn update(&self, update: Update) -> Result<(), Status> {
        match update {
            Update::Limits(resources) => limit(&self.guest, ONLY, &resources).await,
            Update::Network(update) => self.change_network(*update).await,
        }
    }

    async fn oom_kills_after(&self, seen: u64) -> Option<u64> {
        oom_kills_after(&self.guest, ONLY, seen).await
    }

    async fn delete(&self, changes: Changes) -> Result<(), Status> {
        if changes == Changes::Kept && !self.worker.is_destroyed() {
            // Without it the scratch disk is only as good as its journal; a guest that is gone cannot answer.
            match tokio::time::timeout(SHUTDOWN_PATIENCE, self.guest.shutdown(&wire::Empty::new())).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::info!(%error, "the guest did not shut down in order"),
                Err(_) => tracing::warn!("the guest does not shut down in time"),
            }
        }
        self.worker.destroy().await?;
        // A namespace of the engine's goes with its container; in another, the next VM's taps would have the same names.
        if !self.worker.is_on_foreign_network() {
            self.worker.vm.network_slots().close_later();
        }
        // Not before the guest has written back what it had.
        *self.shares.lock().unwrap_or_else(PoisonError::into_inner) = Shares::default();
        worker::remove_folder(&self.vm_dir);
        Ok(())
    }
}
