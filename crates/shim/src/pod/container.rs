//! A container in a pod's utility VM.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proto::gcs::wire::{self, ContainerRequest};
use proto::{ErrorKind, ProcessDetails, Status};
use tokio::sync::Mutex;
use uvm::HypervisorError;

use super::{Berth, PodVm};
use crate::compute::{Changes, ComputeSystem, CreateInput, ExecRequest, Process, Update};
use crate::hyperv::guest_process::{Caller, GuestProcess};
use crate::hyperv::{details, limit, oom_kills_after};
use crate::metrics::Usage;
use crate::plan::{Plan, Seat};
use crate::shares::Shares;
use crate::spec::GuestNames;
use crate::stdio::Fifos;

/// How long the guest may take to give a container's disk back in order.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);

/// One of a pod's containers.
pub struct PodContainer {
    pod: Arc<PodVm>,
    number: u32,
    init: Arc<GuestProcess>,
    /// Until it is deleted.
    held: Mutex<Option<Held>>,
}

/// What it has beside its processes.
struct Held {
    berth: Berth,
    shares: Shares,
}

impl PodContainer {
    /// Gives it its disks and shares, and creates it in the pod's VM; its first process then waits to be started.
    ///
    /// # Errors
    /// What is wrong with the bundle, the streams or the container, or that the pod is full; nothing stays.
    pub async fn create(pod: &Arc<PodVm>, input: CreateInput) -> Result<Self, Status> {
        let CreateInput { id, bundle, container, stdio, .. } = input;
        let fifos = Fifos::open(&stdio).await.map_err(|error| Status::from_error(error.kind(), &error))?;
        let number = pod.next_container();
        let (mut plan, mut berth) = pod.take(|first_share| {
            let plan = Plan::read_as(&bundle, container, &GuestNames::member(number, first_share))?;
            if plan.vsock {
                // Whoever is connected with is to be one container.
                return Err(Status::from_error(HypervisorError::NoVsock.kind(), &HypervisorError::NoVsock));
            }
            let shares = plan.shares.len();
            Ok((plan, shares))
        })?;
        pod.prepare(&mut plan)?;
        let made = create(pod, number, &berth, id.as_str(), &plan, Caller { stdio: &stdio, fifos }).await;
        match made {
            Ok((init, shares)) => {
                let (pod, init) = (Arc::clone(pod), Arc::new(init));
                Ok(Self { pod, number, init, held: Mutex::new(Some(Held { berth, shares })) })
            }
            Err(status) => {
                // A guest that did not answer may still be at it.
                berth.is_lost = status.kind == ErrorKind::DeadlineExceeded;
                if let Err(left) = berth.clear().await {
                    tracing::warn!(%left, "a place in a pod's utility VM is lost");
                }
                Err(status)
            }
        }
    }
}

impl PodVm {
    /// What the pod's size and settings mean for one of its containers.
    fn prepare(&self, plan: &mut Plan) -> Result<(), Status> {
        let Some(linux) = plan.spec.linux_mut() else { return Ok(()) };
        let memory = linux.resources().as_ref().and_then(|resources| resources.memory().as_ref()?.limit());
        if let Some(limit) =
            memory.and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit > self.memory_bytes)
        {
            let what = format!(
                "the container may use {limit} bytes of memory, and its pod's utility VM has {}: see pod-memory-mib in shim.toml",
                self.memory_bytes
            );
            return Err(Status::new(ErrorKind::InvalidArgument, what));
        }
        let mut settings = self.settings.clone();
        settings.extend(linux.sysctl().clone().unwrap_or_default());
        linux.set_sysctl((!settings.is_empty()).then_some(settings));
        Ok(())
    }
}

async fn create(
    pod: &PodVm,
    number: u32,
    berth: &Berth,
    id: &str,
    plan: &Plan,
    caller: Caller<'_>,
) -> Result<(GuestProcess, Shares), Status> {
    let worker = &pod.worker;
    let disks = worker.vm.bind_disks(berth.place, plan.scratch.clone(), plan.layers.clone()).await;
    let disks = disks.map_err(|error| Status::from_error(error.kind(), &error))?;
    // In the pod's cgroup on the host: what serves its folders ends with it at the latest.
    let shares = Shares::serve(worker.vm.guest(), berth.first_share, &plan.shares, &worker.cgroup).await?;
    let seat = Seat {
        container: number,
        process: worker.next_process(),
        first_share: berth.first_share,
        file_system: false,
        disks,
    };
    let process = GuestProcess::create(worker, id, plan, &seat, caller).await?;
    worker.vm.record_working_set().await;
    Ok((process, shares))
}

impl PodContainer {
    fn request(&self) -> ContainerRequest {
        ContainerRequest { container: self.number, ..ContainerRequest::default() }
    }
}

#[async_trait]
impl ComputeSystem for PodContainer {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as Arc<dyn Process>
    }

    async fn start(&self) -> Result<(), Status> {
        let request = wire::StartRequest { container: self.number, ..wire::StartRequest::default() };
        self.pod.worker.vm.guest().start(&request).await.map(drop).map_err(|error| error.to_status())
    }

    async fn exec(&self, exec: ExecRequest) -> Result<Arc<dyn Process>, Status> {
        Ok(Arc::new(GuestProcess::exec(&self.pod.worker, self.number, exec).await?))
    }

    async fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.init.send_signal(signal, true).await
    }

    async fn pause(&self) -> Result<(), Status> {
        let what = "a container of a pod with isolation hyperv cannot be paused by itself";
        Err(Status::new(ErrorKind::NotImplemented, what))
    }

    async fn resume(&self) -> Result<(), Status> {
        self.pause().await
    }

    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status> {
        let response = self.pod.worker.vm.guest().processes(&self.request()).await;
        response.map(details).map_err(|error| error.to_status())
    }

    async fn stats(&self) -> Result<Usage, Status> {
        let response = self.pod.worker.vm.guest().stats(&self.request()).await;
        response.map(|response| Usage::Guest(Box::new(response))).map_err(|error| error.to_status())
    }

    async fn update(&self, update: Update) -> Result<(), Status> {
        match update {
            Update::Limits(resources) => limit(self.pod.worker.vm.guest(), self.number, &resources).await,
            Update::Network(_) => {
                Err(Status::new(ErrorKind::NotImplemented, "the network of a pod is made with its sandbox"))
            }
        }
    }

    async fn oom_kills_after(&self, seen: u64) -> Option<u64> {
        oom_kills_after(self.pod.worker.vm.guest(), self.number, seen).await
    }

    async fn delete(&self, _: Changes) -> Result<(), Status> {
        let mut held = self.held.lock().await;
        let Some(Held { berth, shares }) = held.as_mut() else { return Ok(()) };
        if !self.pod.worker.is_destroyed() {
            let request = self.request();
            let removal = self.pod.worker.vm.guest().remove_container(&request);
            let removed = tokio::time::timeout(REMOVAL_PATIENCE, removal).await;
            match &removed {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::info!(%error, "the guest did not remove a container in order"),
                Err(_) => tracing::warn!("the guest does not remove a container in time"),
            }
            berth.is_lost = !matches!(removed, Ok(Ok(_)));
            // Whatever the guest says, it has them no more. Of a VM that has ended nothing need be taken.
            let cleared = tokio::select! {
                biased;
                _ = self.pod.worker.vm.wait() => Ok(()),
                cleared = berth.clear() => cleared,
            };
            if let Err(left) = cleared {
                tracing::warn!(%left, "a place in a pod's utility VM is lost");
            }
        }
        // Not before the guest has written back what it had.
        *shares = Shares::default();
        *held = None;
        Ok(())
    }
}
