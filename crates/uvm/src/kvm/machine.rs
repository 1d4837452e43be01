//! One process of our own VMM.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use proto::network::{NETWORK_SLOTS, NetworkRates};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::UnixStream;
use vmm::protocol::{self, GuestEnd, MachineSpec, Reply, Request};

use super::control::{Control, ControlError};
use super::disks;
use super::installation::VmmInstallation;
use crate::console_text::{panic_text, printable};
use crate::host_sockets::HostSockets;
use crate::hypervisor::{ExitReason, HypervisorError, SlotBinding, SlotBindings, VirtualMachine, VmExit};
use crate::machine::{MachineConfig, NOMINAL_DISK_BYTES};
use crate::process::{Log, Running, Watched};
use crate::{spawn, sys};

/// How long making a machine may take; a fork takes milliseconds on hardware, a boot reads 60 MB.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long saving may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(60);
/// How long a small request may take. It is answered at once unless the host is very busy.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// How long to wait for the console's output, and for the end of a process that was lost.
const SHORT_LIMIT: Duration = Duration::from_secs(2);

/// A machine in a process of its own. Dropping it kills the process; a task reaps it.
#[derive(Debug)]
pub(super) struct KvmMachine {
    running: Running,
    control: Arc<Control>,
    port: Mutex<Option<StdUnixStream>>,
    disk_slots: u32,
    /// The server's end of the file system.
    files: Mutex<Option<OwnedFd>>,
    /// The host's end of the socket device, where there is one.
    host: Mutex<Option<OwnedFd>>,
}

/// A process that was started: it builds its jail meanwhile, and a machine that has no memory yet. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Waiting(KvmMachine);

impl Waiting {
    /// Starts the process. Shape: `run_dir` takes its log.
    pub(super) async fn start(
        installation: &VmmInstallation,
        config: &MachineConfig,
        run_dir: &Path,
    ) -> Result<Self, HypervisorError> {
        let io_error = |action| move |source| HypervisorError::Io { action, source };
        let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(io_error("open /dev/kvm"))?;
        let (port, guest_port) = StdUnixStream::pair().map_err(io_error("make the port's sockets"))?;
        let (files, guest_files) = StdUnixStream::pair().map_err(io_error("make the file system's sockets"))?;
        let (host, device) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| io_error("make the socket device's sockets")(error.into()))?;
        let (control, theirs) = Control::new().map_err(io_error("make the control socket"))?;
        let (log, messages) = Log::make(run_dir, "vmm.log").map_err(io_error("open the hypervisor's log"))?;
        let mut command = Command::new(installation.program());
        command.env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        command.stderr(messages);
        sys::confine(&mut command, Vec::new(), sys::VMM_CAPABILITIES);
        let child = spawn::spawn(command)
            .await
            .map_err(|source| HypervisorError::Spawn { program: installation.program().to_owned(), source })?;
        let watched = Watched::adopt(child, log).map_err(io_error("watch the hypervisor's process"))?;
        let process = Arc::clone(watched.process());
        let control = Arc::new(control);
        let watcher = Watcher { watched, control: Arc::clone(&control) };
        let running = Running::watched_by(process, watcher.run());
        let (port, files) = (Mutex::new(Some(port)), Mutex::new(Some(files.into())));
        let machine = spec(config);
        let host = Mutex::new(machine.has_socket().then_some(host));
        let prepare = Request::Prepare { machine };
        let ends = [kvm.into(), guest_port.into(), guest_files.into(), device];
        let told = control.tell(&prepare, &ends).await;
        told.map_err(io_error("speak to the hypervisor"))?;
        Ok(Self(KvmMachine { running, control, port, files, host, disk_slots: config.disk_slots() }))
    }

    /// The process's number.
    pub(super) fn process_id(&self) -> u32 {
        self.0.running.id()
    }

    /// It has not ended.
    pub(super) fn is_alive(&self) -> bool {
        !self.0.running.has_ended()
    }

    /// Has it finish the machine.
    pub(super) async fn make(
        self,
        during: &'static str,
        request: &Request,
        files: Vec<OwnedFd>,
    ) -> Result<KvmMachine, HypervisorError> {
        self.0.ask(during, START_LIMIT, request, files).await?;
        Ok(self.0)
    }
}

fn spec(config: &MachineConfig) -> MachineSpec {
    MachineSpec {
        memory_bytes: config.memory_bytes(),
        vcpus: config.vcpus(),
        disk_slots: config.disk_slots(),
        slots_per_container: config.slots_per_container(),
        disk_bytes: NOMINAL_DISK_BYTES,
        network_slots: NETWORK_SLOTS,
    }
}

impl KvmMachine {
    async fn ask(
        &self,
        during: &'static str,
        limit: Duration,
        request: &Request,
        files: Vec<OwnedFd>,
    ) -> Result<Reply, HypervisorError> {
        match tokio::time::timeout(limit, self.control.ask(request, &files)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(ControlError::Failed(detail))) => Err(HypervisorError::Failed { during, detail }),
            // A lost connection means that the process ends; how it ended says more.
            Ok(Err(ControlError::Lost(source))) => match tokio::time::timeout(SHORT_LIMIT, self.wait()).await {
                Ok(exit) => Err(HypervisorError::Ended { during, detail: exit.detail }),
                Err(_) => Err(HypervisorError::Io { action: "speak to the hypervisor", source }),
            },
            Err(_) => Err(HypervisorError::Deadline { during, limit_s: limit.as_secs(), detail: String::new() }),
        }
    }

    async fn small(&self, during: &'static str, request: Request) -> Result<(), HypervisorError> {
        self.ask(during, REQUEST_LIMIT, &request, Vec::new()).await.map(|_| ())
    }
}

#[async_trait]
impl VirtualMachine for KvmMachine {
    fn connect(&self) -> Result<UnixStream, HypervisorError> {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(HypervisorError::PortTaken)?;
        let convert = |port: StdUnixStream| {
            port.set_nonblocking(true)?;
            UnixStream::from_std(port)
        };
        convert(port).map_err(|source| HypervisorError::Io { action: "use the port's socket", source })
    }

    fn file_server(&self) -> Option<OwnedFd> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn host_sockets(&self, folder: &Path) -> Result<HostSockets, HypervisorError> {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(HypervisorError::NoVsock)?;
        let served = HostSockets::serve(host, folder);
        served.map_err(|source| HypervisorError::Io { action: "make the sockets for a container's vsock", source })
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.small("resuming", Request::Resume).await
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.small("pausing", Request::Pause).await
    }

    async fn rebind(&self, bindings: &SlotBindings) -> Result<(), HypervisorError> {
        let (disks, files) = disks::open(bindings, self.disk_slots)?;
        let request = Request::Rebind { disks, rates: disks::rates(bindings.rates) };
        self.ask("binding the disks", REQUEST_LIMIT, &request, files).await.map(|_| ())
    }

    async fn rebind_slot(&self, slot: u32, binding: &SlotBinding) -> Result<(), HypervisorError> {
        let (disk, files) = disks::open_one(binding)?;
        self.ask("binding a disk", REQUEST_LIMIT, &Request::RebindSlot { slot, disk }, files).await.map(|_| ())
    }

    async fn limit_network(&self, slot: u32, rates: NetworkRates) -> Result<(), HypervisorError> {
        let NetworkRates { receive_bytes, send_bytes, receive_frames, send_frames } = rates;
        let rates = protocol::NetworkRates { receive_bytes, send_bytes, receive_frames, send_frames };
        self.small("limiting a network", Request::LimitNetwork { slot, rates }).await
    }

    async fn freeze(self: Box<Self>, state: File) -> Result<(), HypervisorError> {
        self.ask("saving the template", FREEZE_LIMIT, &Request::Freeze, vec![state.into()]).await?;
        // An orderly end.
        if tokio::time::timeout(FREEZE_LIMIT, self.wait()).await.is_err() {
            tracing::warn!(pid = self.running.id(), "a frozen machine's process does not end; it is killed");
        }
        Ok(())
    }

    fn kill(&self) {
        self.running.kill();
    }

    async fn wait(&self) -> VmExit {
        self.running.wait().await
    }

    fn process_ids(&self) -> Vec<u32> {
        vec![self.running.id()]
    }

    async fn console(&self) -> String {
        console(&self.control).await
    }

    async fn standing(&self) -> String {
        match tokio::time::timeout(SHORT_LIMIT, self.control.ask(&Request::Stand, &[])).await {
            Ok(Ok(Reply::Standing(text))) => printable(&text).chars().take(2000).collect(),
            _ => String::new(),
        }
    }
}

/// Waits for the end, whatever it is, and says what it was.
struct Watcher {
    watched: Watched,
    control: Arc<Control>,
}

impl Watcher {
    async fn run(mut self) -> VmExit {
        let mut end = self.control.end();
        let told = tokio::select! {
            () = self.watched.ended() => None,
            told = end.wait_for(Option::is_some) => told.ok().and_then(|told| told.clone()),
        };
        let exit = match told {
            Some(GuestEnd::Reset) => {
                VmExit { reason: ExitReason::GuestPanic, detail: panic_text(&console(&self.control).await) }
            }
            Some(GuestEnd::PowerOff) => VmExit { reason: ExitReason::Shutdown, detail: String::new() },
            Some(GuestEnd::Fault(what)) => {
                let what: String = printable(&what).chars().take(200).collect();
                VmExit { reason: ExitReason::Exited(None), detail: format!("a virtual processor cannot go on: {what}") }
            }
            None => return self.watched.reap().await,
        };
        // It keeps the stopped machine so that its console could be read; now it may go.
        let process = Arc::clone(self.watched.process());
        process.signal();
        let reaped = self.watched.reap().await;
        if process.was_killed() && exit.reason != ExitReason::GuestPanic { reaped } else { exit }
    }
}

async fn console(control: &Control) -> String {
    match tokio::time::timeout(SHORT_LIMIT, control.ask(&Request::Console, &[])).await {
        Ok(Ok(Reply::Console(bytes))) => printable(&String::from_utf8_lossy(&bytes)),
        _ => String::new(),
    }
}
