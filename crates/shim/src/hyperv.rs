//! Hyperv isolation: a container in a utility VM of its own, by the `uvm` crate.
//!
//! The VM lives from Create to Delete. Its guest's word about the container counts while the VM runs; when the VM ends by
//! itself (its kernel panicked, somebody killed the VMM), every process in it has ended too.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use oci_spec::runtime::LinuxResources;
use proto::gcs::wire;
use proto::gcs::{INIT_PROCESS, StreamHeader, StreamKind};
use proto::network::{NetworkUpdate, SandboxNetwork};
use proto::{ErrorKind, ProcessDetails, Status};
use uvm::{ExitReason, GuestConnection, GuestError, UtilityVm, VmExit};

use crate::bundle::Bundle;
use crate::compute::{Changes, ComputeSystem, CreateInput, ExecRequest, Process, Update};
use crate::files::relay::FilesRelay;
use crate::metrics::Usage;
use crate::network;
use crate::plan::Plan;
use crate::shares::Shares;
use crate::standby::Standby;
use crate::state::Exit;
use crate::stdio::{Fifos, ProcessEnds, StdioPaths, Streams};
use crate::{clock, terminal};

/// How long the guest may take to give its disk back in order.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);
/// How long after the loss of its connection a VM may take to say why it ended.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// A container in a utility VM.
pub struct HypervSystem {
    worker: Arc<Worker>,
    guest: GuestConnection,
    init: Arc<GuestProcess>,
    /// Number of the next exec in the guest.
    next_process: AtomicU32,
    vm_dir: PathBuf,
    /// For its volumes and binds.
    shares: Mutex<Shares>,
    /// What it is on.
    network: tokio::sync::Mutex<Option<SandboxNetwork>>,
    /// For operations on the container's files.
    _files: FilesRelay,
}

/// The VM and its cgroup on the host.
struct Worker {
    vm: UtilityVm,
    cgroup: String,
    /// Somebody's namespace that was taken over.
    namespace: Option<PathBuf>,
    destroyed: AtomicBool,
}

/// Turns an error with a kind into what crosses the seam.
macro_rules! status {
    ($error:expr) => {{
        let error = $error;
        Status::from_error(error.kind(), &error)
    }};
}

impl Worker {
    fn of(vm: UtilityVm, plan: &Plan) -> Self {
        let (cgroup, namespace) = (plan.cgroup.clone(), plan.foreign_namespace.clone());
        Self { vm, cgroup, namespace, destroyed: AtomicBool::new(false) }
    }

    /// Kills the VM and removes its cgroup. May be repeated.
    async fn destroy(self: Arc<Self>) -> Result<(), Status> {
        if !self.destroyed.swap(true, Ordering::SeqCst) {
            self.vm.kill();
            // Killed, it cannot stay; this waits only until the kernel has reaped it.
            self.vm.wait().await;
        }
        let given_back = give_back(self.namespace.clone()).await;
        remove_cgroup(self.cgroup.clone()).await.and(given_back)
    }
}

async fn give_back(namespace: Option<PathBuf>) -> Result<(), Status> {
    match namespace {
        Some(namespace) => network::give_back(namespace).await,
        None => Ok(()),
    }
}

async fn remove_cgroup(path: String) -> Result<(), Status> {
    let removed =
        tokio::task::spawn_blocking(move || container::remove_cgroup(path.as_ref()).map_err(|error| status!(error)));
    removed.await.unwrap_or_else(|error| Err(Status::new(ErrorKind::Internal, error.to_string())))
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
        let fifos = Fifos::open(&stdio).await.map_err(|error| status!(error))?;
        if let Some(namespace) = &plan.foreign_namespace {
            plan.network = network::take_over(namespace.clone()).await?;
        }
        let worker = Arc::new(start_vm(&bundle, &plan, standby).await?);
        let created = async {
            let report = worker.vm.report();
            bundle.write_utility_vm(report).map_err(|error| status!(error))?;
            bundle.write_processes(&report.vmm_pids).map_err(|error| status!(error))?;
            let pid = report.vmm_pids.first().copied().unwrap_or(0);
            let make = async {
                let shares = Shares::serve(worker.vm.guest(), &plan.shares, &plan.cgroup).await?;
                let caller = Caller { stdio: &stdio, fifos };
                let init = create_container(&worker, id.as_str(), &plan, caller, pid).await?;
                Ok::<_, Status>((shares, init))
            };
            // None of the container's processes runs before both are there.
            let ((), (shares, init)) = tokio::try_join!(connect(&worker.vm, plan.network.as_ref()), make)?;
            let files = FilesRelay::start(bundle.path(), worker.vm.guest().clone());
            Ok((init, shares, files.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?))
        };
        match created.await {
            Ok((init, shares, files)) => Ok(Self {
                shares: Mutex::new(shares),
                network: tokio::sync::Mutex::new(plan.network),
                guest: worker.vm.guest().clone(),
                worker,
                init: Arc::new(init),
                next_process: AtomicU32::new(INIT_PROCESS + 1),
                vm_dir: bundle.vm_dir(),
                _files: files,
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

async fn connect(vm: &UtilityVm, network: Option<&SandboxNetwork>) -> Result<(), Status> {
    match network {
        Some(network) => network::connect(vm, network).await,
        None => Ok(()),
    }
}

impl HypervSystem {
    async fn limit(&self, resources: &LinuxResources) -> Result<(), Status> {
        let mut request = wire::UpdateRequest::new();
        request.resources =
            serde_json::to_vec(resources).map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
        self.guest.update(&request).await.map(drop).map_err(|error| error.to_status())
    }

    /// One change at a time.
    async fn change_network(&self, update: NetworkUpdate) -> Result<(), Status> {
        let mut now = self.network.lock().await;
        network::change(&self.worker.vm, now.as_ref(), &update).await?;
        *now = Some(update.network);
        Ok(())
    }
}

async fn start_vm(bundle: &Bundle, plan: &Plan, standby: Option<Standby>) -> Result<Worker, Status> {
    if let Some(vm) = adopt(bundle, plan, standby).await {
        return Ok(Worker::of(vm, plan));
    }
    match UtilityVm::start(plan.start_request(bundle.vm_dir())).await {
        Ok(vm) => Ok(Worker::of(vm, plan)),
        Err(error) => {
            if let Err(left) = give_back(plan.foreign_namespace.clone()).await {
                tracing::error!(%left, "a network namespace stays taken over");
            }
            if let Err(left) = remove_cgroup(plan.cgroup.clone()).await {
                tracing::error!(%left, "a cgroup is left behind");
            }
            Err(status!(error))
        }
    }
}

/// The VM that stands by, if there is one and it serves. Nothing of the container depends on it: without it one is forked.
async fn adopt(bundle: &Bundle, plan: &Plan, standby: Option<Standby>) -> Option<UtilityVm> {
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

/// The caller's side of a process's streams.
struct Caller<'a> {
    stdio: &'a StdioPaths,
    fifos: Fifos,
}

async fn create_container(
    worker: &Arc<Worker>,
    id: &str,
    plan: &Plan,
    caller: Caller<'_>,
    vmm_pid: u32,
) -> Result<GuestProcess, Status> {
    let guest = worker.vm.guest();
    let Caller { stdio, fifos } = caller;
    let has_stdin = fifos.has_stdin();
    let streams = open_streams(guest, INIT_PROCESS, fifos, stdio).await?;
    let request = plan.container_request(&worker.vm, id, stdio.terminal, has_stdin)?;
    guest.create_container(&request).await.map_err(|error| error.to_status())?;
    Ok(GuestProcess {
        number: INIT_PROCESS,
        pid: vmm_pid,
        terminal: stdio.terminal,
        worker: Arc::clone(worker),
        guest: guest.clone(),
        streams,
    })
}

/// Opens a process's streams in the guest, which must happen before the process is made, and copies them from now on.
async fn open_streams(
    guest: &GuestConnection,
    process: u32,
    fifos: Fifos,
    stdio: &StdioPaths,
) -> Result<Streams, Status> {
    let open = async |kind| {
        let stream = guest.open_stream(StreamHeader { kind, process }).await;
        stream.map_err(|error: GuestError| error.to_status())
    };
    let mut ends = ProcessEnds::default();
    if fifos.has_stdin() {
        ends.stdin = Some(Box::pin(open(StreamKind::Stdin).await?));
    }
    if stdio.terminal || !stdio.stdout.is_empty() {
        ends.stdout = Some(Box::pin(open(StreamKind::Stdout).await?));
    }
    if !stdio.terminal && !stdio.stderr.is_empty() {
        ends.stderr = Some(Box::pin(open(StreamKind::Stderr).await?));
    }
    fifos.copy(ends).map_err(|error| Status {
        kind: ErrorKind::Internal,
        message: "cannot copy the process's streams".to_owned(),
        causes: vec![error.to_string()],
    })
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
        let ExecRequest { process, stdio } = exec;
        let number = self.next_process.fetch_add(1, Ordering::SeqCst);
        let fifos = Fifos::open(&stdio).await.map_err(|error| status!(error))?;
        let has_stdin = fifos.has_stdin();
        let streams = open_streams(&self.guest, number, fifos, &stdio).await?;
        let (width, height) = terminal::console_size(&process);
        let mut request = wire::ExecRequest::new();
        request.process = number;
        request.spec =
            serde_json::to_vec(&process).map_err(|error| Status::from_error(ErrorKind::InvalidArgument, &error))?;
        request.terminal = stdio.terminal;
        request.width = u32::from(width);
        request.height = u32::from(height);
        request.stdin = has_stdin;
        let response = self.guest.exec(&request).await.map_err(|error| error.to_status())?;
        Ok(Arc::new(GuestProcess {
            number,
            pid: response.pid,
            terminal: stdio.terminal,
            worker: Arc::clone(&self.worker),
            guest: self.guest.clone(),
            streams,
        }))
    }

    async fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.init.send_signal(signal, true).await
    }

    async fn pause(&self) -> Result<(), Status> {
        self.worker.vm.pause().await.map_err(|error| status!(error))
    }

    async fn resume(&self) -> Result<(), Status> {
        self.worker.vm.resume().await.map_err(|error| status!(error))
    }

    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status> {
        let response = self.guest.processes(&wire::Empty::new()).await.map_err(|error| error.to_status())?;
        let details = response.processes.into_iter().map(|entry| ProcessDetails {
            pid: entry.pid,
            parent: entry.parent,
            user_id: entry.user_id,
            terminal: entry.terminal,
            started_at_ns: entry.started_at_ns,
            cpu_ms: entry.cpu_ms,
            command: entry.command,
        });
        Ok(details.collect())
    }

    async fn stats(&self) -> Result<Usage, Status> {
        let response = self.guest.stats(&wire::Empty::new()).await.map_err(|error| error.to_status())?;
        Ok(Usage::Guest(Box::new(response)))
    }

    async fn update(&self, update: Update) -> Result<(), Status> {
        match update {
            Update::Limits(resources) => self.limit(&resources).await,
            Update::Network(update) => self.change_network(*update).await,
        }
    }

    async fn delete(&self, changes: Changes) -> Result<(), Status> {
        if changes == Changes::Kept && !self.worker.destroyed.load(Ordering::SeqCst) {
            // Without it the scratch disk is only as good as its journal; a guest that is gone cannot answer.
            match tokio::time::timeout(SHUTDOWN_PATIENCE, self.guest.shutdown(&wire::Empty::new())).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::info!(%error, "the guest did not shut down in order"),
                Err(_) => tracing::warn!("the guest does not shut down in time"),
            }
        }
        Arc::clone(&self.worker).destroy().await?;
        // Not before the guest has written back what it had.
        *self.shares.lock().unwrap_or_else(PoisonError::into_inner) = Shares::default();
        match std::fs::remove_dir_all(&self.vm_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %self.vm_dir.display(), "left behind");
            }
            _ => {}
        }
        Ok(())
    }
}

/// A process within a utility VM.
struct GuestProcess {
    number: u32,
    pid: u32,
    terminal: bool,
    worker: Arc<Worker>,
    guest: GuestConnection,
    streams: Streams,
}

impl GuestProcess {
    async fn send_signal(&self, signal: i32, all: bool) -> Result<(), Status> {
        let mut request = wire::SignalRequest::new();
        request.process = self.number;
        request.signal = u32::try_from(signal).unwrap_or(0);
        request.all = all;
        let sent = self.guest.signal(&request).await.map(drop).map_err(|error| error.to_status());
        match sent {
            // SIGKILL is never refused: a guest that does not answer dies with its container.
            Err(status)
                if signal == libc::SIGKILL
                    && self.number == INIT_PROCESS
                    && matches!(status.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) =>
            {
                tracing::warn!(%status, "the guest does not take SIGKILL; killing its VM");
                self.worker.vm.kill();
                Ok(())
            }
            sent => sent,
        }
    }
}

/// How a VM's own end looks as its container's exit.
fn exit_of_vm(end: &VmExit) -> Exit {
    // A signal's number is in the low 7 bits of a wait status. Source: wait(2).
    let killed = |status: i32| status & 0x7f == libc::SIGKILL;
    let (code, what) = match end.reason {
        ExitReason::GuestPanic => (255, "the utility VM's kernel panicked"),
        ExitReason::Killed => (137, "the utility VM was killed"),
        ExitReason::Exited(Some(status)) if killed(status) => (137, "the utility VM's VMM was killed"),
        ExitReason::Shutdown => (255, "the utility VM shut down"),
        ExitReason::Exited(_) => (255, "the utility VM's VMM ended"),
    };
    let error = if end.detail.is_empty() { what.to_owned() } else { format!("{what}: {}", end.detail) };
    Exit { code, at_ns: clock::now_ns(), oom_killed: false, error: Some(error) }
}

#[async_trait]
impl Process for GuestProcess {
    fn pid(&self) -> u32 {
        self.pid
    }

    async fn signal(&self, signal: i32) -> Result<(), Status> {
        self.send_signal(signal, false).await
    }

    async fn resize(&self, width: u32, height: u32) -> Result<(), Status> {
        if !self.terminal {
            return Err(Status::new(ErrorKind::FailedPrecondition, "the process has no terminal"));
        }
        let mut request = wire::ResizeRequest::new();
        request.process = self.number;
        request.width = width;
        request.height = height;
        self.guest.resize(&request).await.map(drop).map_err(|error| error.to_status())
    }

    fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    async fn exited(&self) -> Exit {
        let mut request = wire::WaitRequest::new();
        request.process = self.number;
        let answer = tokio::select! {
            biased;
            answer = self.guest.wait(&request) => answer,
            end = self.worker.vm.wait() => return exit_of_vm(&end),
        };
        match answer {
            Ok(response) => Exit {
                // Everything from the guest is hostile input.
                code: response.exit_code.min(255),
                at_ns: clock::now_ns(),
                oom_killed: response.oom_killed,
                error: None,
            },
            Err(error) => {
                tracing::warn!(%error, process = self.number, "the guest does not say how a process ended");
                if let Ok(end) = tokio::time::timeout(LAST_WORDS, self.worker.vm.wait()).await {
                    return exit_of_vm(&end);
                }
                // A guest that runs and does not talk is of no use to anybody.
                self.worker.vm.kill();
                let error = Some(format!("the utility VM's guest was lost: {error}"));
                Exit { code: 255, at_ns: clock::now_ns(), oom_killed: false, error }
            }
        }
    }

    async fn output_complete(&self) {
        self.streams.complete().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_end_is_told_with_its_reason() {
        let end = |reason, detail: &str| exit_of_vm(&VmExit { reason, detail: detail.to_owned() });
        let exit = end(ExitReason::GuestPanic, "sysrq triggered crash");
        assert_eq!((exit.code, exit.oom_killed), (255, false));
        assert_eq!(exit.error.unwrap(), "the utility VM's kernel panicked: sysrq triggered crash");
        let exit = end(ExitReason::Killed, "");
        assert_eq!((exit.code, exit.error.as_deref()), (137, Some("the utility VM was killed")));
        assert_eq!(end(ExitReason::Exited(Some(libc::SIGKILL)), "").code, 137);
        assert_eq!(end(ExitReason::Exited(Some(1 << 8)), "").code, 255);
        assert_eq!(end(ExitReason::Exited(None), "").code, 255);
    }
}
