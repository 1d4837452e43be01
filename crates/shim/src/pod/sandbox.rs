//! A pod's sandbox as a task: its utility VM.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use proto::control::ContainerBundle;
use proto::network::SandboxNetwork;
use proto::{ErrorKind, ProcessDetails, Status};
use uvm::StartRequest;

use super::PodVm;
use super::ports::Ports;
use crate::bundle::Bundle;
use crate::compute::{Changes, ComputeSystem, ExecRequest, Process, Update};
use crate::hyperv::guest_process::exit_of_vm;
use crate::hyperv::worker::{self, Worker, connect};
use crate::metrics::Usage;
use crate::state::Exit;
use crate::{network, spec};

/// The signals that end a sandbox, as they end the pause process of other runtimes.
const ENDING: [i32; 4] = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// A pod's sandbox. The VM lives from Create to Kill.
pub struct Sandbox {
    worker: Arc<Worker>,
    vm_dir: PathBuf,
    /// Without a namespace of its own nothing is forwarded.
    _ports: Option<Ports>,
}

impl Sandbox {
    /// Forks the pod's utility VM and puts it on the network that CNI has made.
    ///
    /// # Errors
    /// What the bundle, the network or the VM say; nothing stays.
    pub async fn create(bundle: &Bundle, container: &ContainerBundle) -> Result<(Self, Arc<PodVm>), Status> {
        let vm = container.utility_vm.as_ref().ok_or_else(|| {
            Status::new(ErrorKind::InvalidArgument, "the bundle says nothing about the pod's utility VM")
        })?;
        let spec = bundle.spec().map_err(|error| Status::from_error(error.kind(), &error))?;
        let namespace = spec::network_namespace(&spec);
        let network = match &namespace {
            Some(namespace) => network::take_over(namespace.clone()).await?,
            None => None,
        };
        let request = StartRequest {
            vm,
            scratch: PathBuf::new(),
            layers: Vec::new(),
            run_dir: bundle.vm_dir(),
            hostname: spec.hostname().clone().unwrap_or_default(),
            domainname: spec.domainname().clone().unwrap_or_default(),
            cgroup: Some(container.cgroup.clone()),
            rehearsal: false,
            namespace: network.as_ref().map(|network| network.namespace.clone()),
            network: network.as_ref().map(SandboxNetwork::for_guest).unwrap_or_default(),
            pod: true,
        };
        let worker = Arc::new(worker::start(None, request, &container.cgroup, namespace.as_ref()).await?);
        let report = worker.vm.report();
        let recorded = bundle.write_utility_vm(report).and_then(|()| bundle.write_processes(&report.vmm_pids));
        let recorded = recorded.map_err(|error| Status::from_error(error.kind(), &error));
        let connected = async {
            recorded?;
            connect(&worker.vm, network.as_ref()).await?;
            match namespace {
                Some(namespace) => Ports::forward(namespace, &worker).await.map(Some),
                None => Ok(None),
            }
        };
        let ports = match connected.await {
            Ok(ports) => ports,
            Err(status) => {
                if let Err(left) = worker.destroy().await {
                    tracing::error!(%left, "a utility VM is left behind");
                }
                return Err(status);
            }
        };
        let pod = PodVm::new(Arc::clone(&worker), vm, &spec);
        Ok((Self { worker, vm_dir: bundle.vm_dir(), _ports: ports }, pod))
    }
}

fn refused(what: &str) -> Status {
    Status::new(ErrorKind::NotImplemented, format!("the sandbox of a pod with isolation hyperv {what}"))
}

#[async_trait]
impl ComputeSystem for Sandbox {
    fn init(&self) -> Arc<dyn Process> {
        Arc::new(SandboxProcess(Arc::clone(&self.worker)))
    }

    async fn start(&self) -> Result<(), Status> {
        // It runs since it was made, and has no process of anybody's.
        Ok(())
    }

    async fn exec(&self, _: ExecRequest) -> Result<Arc<dyn Process>, Status> {
        Err(refused("has no files to run a command from"))
    }

    async fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.init().signal(signal).await
    }

    async fn pause(&self) -> Result<(), Status> {
        self.worker.vm.pause().await.map_err(|error| Status::from_error(error.kind(), &error))
    }

    async fn resume(&self) -> Result<(), Status> {
        self.worker.vm.resume().await.map_err(|error| Status::from_error(error.kind(), &error))
    }

    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status> {
        Ok(Vec::new())
    }

    async fn stats(&self) -> Result<Usage, Status> {
        Err(refused("has no processes whose use could be counted"))
    }

    async fn update(&self, _: Update) -> Result<(), Status> {
        Err(refused("keeps the size that it was made with"))
    }

    async fn oom_kills_after(&self, _: u64) -> Option<u64> {
        // It has no processes.
        None
    }

    async fn delete(&self, _: Changes) -> Result<(), Status> {
        self.worker.destroy().await?;
        worker::remove_folder(&self.vm_dir);
        Ok(())
    }
}

/// What stands for a process: the VM.
struct SandboxProcess(Arc<Worker>);

#[async_trait]
impl Process for SandboxProcess {
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    async fn signal(&self, signal: i32) -> Result<(), Status> {
        if ENDING.contains(&signal) {
            self.0.vm.kill();
        }
        Ok(())
    }

    async fn resize(&self, _: u32, _: u32) -> Result<(), Status> {
        Err(Status::new(ErrorKind::FailedPrecondition, "the process has no terminal"))
    }

    fn close_stdin(&self) {}

    async fn exited(&self) -> Exit {
        exit_of_vm(&self.0.vm.wait().await)
    }

    async fn output_complete(&self) {}
}
