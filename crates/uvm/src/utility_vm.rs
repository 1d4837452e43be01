//! A utility VM: a machine forked from a template, its connection to the guest, and what is bound to its slots.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::control::{BackendChoice, TemplateSummary, UtilityVmReport, UtilityVmRequest};
use proto::gcs::wire::{self, LayerDevice};
use proto::network::NetworkRates;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::backend;
use crate::builder::Builder;
use crate::cgroup::{HostCgroup, Limits};
use crate::connection::GuestConnection;
use crate::disk::DiskBinding;
use crate::error::UvmError;
use crate::guest_image::GuestImage;
use crate::host_sockets::HostSockets;
use crate::hypervisor::{
    ExitReason, FrozenMachine, Hypervisor, HypervisorError, SlotBinding, SlotBindings, VirtualMachine, VmExit,
};
use crate::key::TemplateKey;
use crate::machine::{MachineConfig, POD_CONTAINER_SLOTS};
use crate::network_slots::NetworkSlots;
use crate::personalize::{Identity, Personalized, personalize};
use crate::prepared::{Prepared, WaitingVmm};
use crate::store::{TemplateError, TemplateStore};
use crate::working_set::Recording;

/// The slot of the scratch disk.
const SCRATCH_SLOT: u32 = 0;
/// The slot of the first layer, and of all layers when they are packed.
const FIRST_LAYER_SLOT: u32 = 1;

/// What one utility VM is started with.
#[derive(Debug, Clone)]
pub struct StartRequest<'a> {
    /// What the engine asks for.
    pub vm: &'a UtilityVmRequest,
    /// The scratch disk, writable.
    pub scratch: PathBuf,
    /// The layers' EROFS files, lowest first, at least one.
    pub layers: Vec<PathBuf>,
    /// Takes this VM's logs; made if missing.
    pub run_dir: PathBuf,
    /// The guest's host name.
    pub hostname: String,
    /// The guest's domain name, often empty.
    pub domainname: String,
    /// The host's cgroup for the VMM, relative to each hierarchy's root.
    pub cgroup: Option<String>,
    /// It is to rehearse, to be renewed, and to stand by for [`UtilityVm::adopt`].
    pub rehearsal: bool,
    /// The file of the network namespace in which the taps behind the network slots are made; without one, a namespace of the
    /// VM's own. A VM that stood by has its own.
    pub namespace: Option<PathBuf>,
    /// What the guest is to know of its network.
    pub network: wire::Network,
    /// It is a pod's: its disks come and go with its containers, by [`UtilityVm::bind_disks`]. There is neither scratch nor layer here
    /// then.
    pub pod: bool,
}

impl StartRequest<'_> {
    fn slots(&self) -> SlotBindings {
        if self.pod {
            return SlotBindings::nothing();
        }
        let scratch = Some(DiskBinding { path: self.scratch.clone(), read_only: false });
        SlotBindings { scratch, layers: self.layers.clone(), rates: self.vm.disk_rates }
    }

    fn identity(&self) -> Identity {
        Identity {
            hostname: self.hostname.clone(),
            domainname: self.domainname.clone(),
            machine_id: self.vm.machine_id.clone(),
            rehearsal: self.rehearsal,
            network: self.network.clone(),
        }
    }

    fn personalize_limit(&self) -> Duration {
        Duration::from_millis(self.vm.personalize_timeout_ms)
    }
}

/// Where a pod's container finds its disks, for `CreateContainer`.
#[derive(Debug, Clone, PartialEq)]
pub struct PodDisks {
    /// The slot of the scratch disk.
    pub scratch_slot: u32,
    /// The layers, top first.
    pub layers: Vec<LayerDevice>,
}

/// A running, personalized utility VM. Dropping it kills it.
pub struct UtilityVm {
    machine: Arc<dyn VirtualMachine>,
    guest: GuestConnection,
    report: UtilityVmReport,
    layers: Vec<LayerDevice>,
    network: NetworkSlots,
    /// The rates of the slots that have had any.
    rates: Mutex<BTreeMap<u32, NetworkRates>>,
    /// Comes while the VM is started; there until the VM has ended.
    cgroup: Mutex<Option<JoinHandle<HostCgroup>>>,
    /// It is killed: its cgroup is of no use any more. To make all of it takes longer than many a container lives.
    given_up: Arc<AtomicBool>,
    /// Nobody has recorded what forks of its template write first.
    recording: Mutex<Option<Recording>>,
}

impl std::fmt::Debug for UtilityVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UtilityVm").field("report", &self.report).finish_non_exhaustive()
    }
}

impl UtilityVm {
    /// Chooses the backend, finds or makes the template, forks it with the request's disks behind its slots, runs it,
    /// and personalizes it.
    ///
    /// When: 0.1 to 0.2 s with a template; the first start on a host makes it first (some seconds, emulated). Safe to
    /// drop before it answers: what was started is killed.
    ///
    /// # Errors
    /// [`UvmError`]. It fails closed: a guest that does not answer rightly and in time is destroyed.
    pub async fn start(request: StartRequest<'_>) -> Result<Self, UvmError> {
        Self::start_in(None, request).await
    }

    /// As [`UtilityVm::start`], in a process that waits, if there is one and it is what the request needs.
    ///
    /// # Errors
    /// As [`UtilityVm::start`].
    pub async fn start_in(waiting: Option<WaitingVmm>, request: StartRequest<'_>) -> Result<Self, UvmError> {
        if request.layers.is_empty() && !request.pod {
            return Err(UvmError::Request("a hyperv container needs at least one layer".into()));
        }
        let asked = Prepared::new(request.vm, request.pod).await?;
        let began = Instant::now();
        let prepared = asked.begin(waiting, &request.run_dir).await?;
        let (template, built) = prepared.template().await?;
        // The template's boot is no part of the fork.
        let began = if built { Instant::now() } else { began };
        let slots = request.slots();
        let network = NetworkSlots::open(request.namespace.clone()).await.map_err(HypervisorError::from)?;
        let id = template.manifest.id.clone();
        let (working_set, recording) = if prepared.hypervisor.takes_working_sets() {
            template.working_set().map_err(TemplateError::store("open", &request.vm.template_store))?
        } else {
            Default::default()
        };
        let frozen = FrozenMachine { working_set, ..template.into_frozen() };
        let machine = prepared.hypervisor.fork(frozen, &prepared.machine, &slots, &network, &request.run_dir).await?;
        let machine: Arc<dyn VirtualMachine> = Arc::from(machine);
        tracing::debug!(us = began.elapsed().as_micros(), "the fork is loaded");
        let vmm_pids = machine.process_ids();
        let given_up = Arc::default();
        let cgroup = attach(&request, &prepared, &vmm_pids, &given_up);
        let (guest, personalized) = bring_up(machine.as_ref(), &request).await?;
        let report = UtilityVmReport {
            accelerator: prepared.hypervisor.identity().accelerator,
            backend: prepared.hypervisor.identity().name.clone(),
            template: id,
            template_built: built,
            vmm_pids,
            boot_id: personalized.boot_id,
            entropy_fingerprint: personalized.fingerprint,
            fork_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            clock_error_us: personalized.clock_error_us,
            standby_us: None,
        };
        tracing::info!(template = %report.template, fork_us = report.fork_us, "forked a utility VM");
        let (layers, rates) = (layer_devices(&slots), Mutex::default());
        let (cgroup, recording) = (Mutex::new(cgroup), Mutex::new(recording));
        Ok(Self { machine, guest, report, layers, network, rates, cgroup, given_up, recording })
    }

    /// Records which pages it has written by now, if nobody has for its template, so that later forks have them copied at once. When: its
    /// container is made, and nothing of it runs; some milliseconds, once for a template.
    pub async fn record_working_set(&self) {
        if let (Some(recording), Some(&pid)) = (self.recording.lock().await.take(), self.report.vmm_pids.first()) {
            let recorded = tokio::task::spawn_blocking(move || recording.make(pid)).await;
            recorded.unwrap_or_else(|error| tracing::warn!(%error, "cannot record a template's working set"));
        }
    }

    /// Gives a utility VM that has rehearsed and was renewed to a container: other disks behind its slots, entropy, clock
    /// and identity anew, all of it as strictly as for a fork.
    ///
    /// When: it was started with `rehearsal`, and the guest has answered `Renew`. Some 20 ms.
    ///
    /// # Errors
    /// [`UvmError::Unfit`] when the request needs another utility VM; otherwise as [`UtilityVm::start`]. It is destroyed.
    pub async fn adopt(mut self, request: StartRequest<'_>) -> Result<Self, UvmError> {
        let began = Instant::now();
        let prepared = Prepared::new(request.vm, request.pod).await?;
        // A limit on memory would not count what the VM has used so far.
        let plain = request.vm.memory_bytes.is_none() && request.vm.cpus_milli.is_none();
        if !plain || prepared.key.id() != self.report.template {
            return Err(UvmError::Unfit);
        }
        self.cgroup = Mutex::new(attach(&request, &prepared, &self.report.vmm_pids, &self.given_up));
        let slots = request.slots();
        let identity = request.identity();
        let disks = async {
            self.machine.rebind(&slots).await?;
            tracing::debug!(us = began.elapsed().as_micros(), "the disks are bound");
            Ok(())
        };
        // Personalize touches no disk, and the first to do so is CreateContainer.
        let personalized = async {
            let personalized = personalize(&self.guest, &identity, request.personalize_limit()).await?;
            tracing::debug!(us = began.elapsed().as_micros(), "the guest is personalized");
            Ok(personalized)
        };
        let steps = async { tokio::try_join!(disks, personalized) };
        let ((), personalized) = unless_it_ends(self.machine.as_ref(), steps).await?;
        self.layers = layer_devices(&slots);
        self.report.boot_id = personalized.boot_id;
        self.report.entropy_fingerprint = personalized.fingerprint;
        self.report.clock_error_us = personalized.clock_error_us;
        self.report.standby_us = Some(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        tracing::info!(template = %self.report.template, standby_us = self.report.standby_us, "adopted a utility VM");
        Ok(self)
    }

    /// What to tell the engine about it.
    #[must_use]
    pub fn report(&self) -> &UtilityVmReport {
        &self.report
    }

    /// Where the layers are, top layer first, for `CreateContainer`.
    #[must_use]
    pub fn layer_devices(&self) -> Vec<LayerDevice> {
        self.layers.clone()
    }

    /// Puts the disks of one of a pod's containers behind the slots of a place. Shape: places count from 0 to
    /// [`crate::POD_CONTAINERS`]; layers lowest first, at least one. When: the place is empty.
    ///
    /// # Errors
    /// [`UvmError::Hypervisor`]; the place is then to be emptied.
    pub async fn bind_disks(&self, place: u32, scratch: PathBuf, layers: Vec<PathBuf>) -> Result<PodDisks, UvmError> {
        let [scratch_slot, layers_slot] = slots_of(place);
        let count = u32::try_from(layers.len()).unwrap_or(u32::MAX);
        self.machine.rebind_slot(scratch_slot, &SlotBinding::Scratch(scratch)).await?;
        self.machine.rebind_slot(layers_slot, &SlotBinding::Layers(layers)).await?;
        let layer = |partition| LayerDevice { slot: layers_slot, partition, ..Default::default() };
        Ok(PodDisks { scratch_slot, layers: (1..=count).rev().map(layer).collect() })
    }

    /// Takes the disks of a place away, whatever the guest does with them: it has said that it lets go of them, or it is none of
    /// ours any more.
    ///
    /// # Errors
    /// [`UvmError::Hypervisor`]; the place is then of no use.
    pub async fn unbind_disks(&self, place: u32) -> Result<(), UvmError> {
        for slot in slots_of(place) {
            self.machine.rebind_slot(slot, &SlotBinding::Nothing).await?;
        }
        Ok(())
    }

    /// The slot of the scratch disk, for `CreateContainer`.
    #[must_use]
    pub fn scratch_slot(&self) -> u32 {
        SCRATCH_SLOT
    }

    /// What is behind the network slots. Their links are down until somebody brings them up.
    #[must_use]
    pub fn network_slots(&self) -> &NetworkSlots {
        &self.network
    }

    /// Limits how fast a network slot may be, from now on; a new utility VM has no limits.
    ///
    /// # Errors
    /// [`HypervisorError::NoNetworkRates`] where there can be none; otherwise as [`UtilityVm::pause`].
    pub async fn limit_network(&self, slot: u32, rates: NetworkRates) -> Result<(), UvmError> {
        let mut limited = self.rates.lock().await;
        // Most have none, and each question to the VMM is a part of a start.
        if limited.get(&slot).copied().unwrap_or_default() != rates {
            self.machine.limit_network(slot, rates).await?;
            limited.insert(slot, rates);
        }
        Ok(())
    }

    /// The host's end of its file system, once, where the backend has one: see [`VirtualMachine::file_server`].
    #[must_use]
    pub fn file_server(&self) -> Option<OwnedFd> {
        self.machine.file_server()
    }

    /// The host's side of its socket device, once, with sockets in `folder`: see [`VirtualMachine::host_sockets`].
    ///
    /// # Errors
    /// [`HypervisorError::NoVsock`] where it has none.
    pub fn host_sockets(&self, folder: &Path) -> Result<HostSockets, UvmError> {
        Ok(self.machine.host_sockets(folder)?)
    }

    /// The connection to the guest compute service.
    #[must_use]
    pub fn guest(&self) -> &GuestConnection {
        &self.guest
    }

    /// Stops its processors. Calls to the guest do not answer until [`UtilityVm::resume`].
    ///
    /// # Errors
    /// [`UvmError::Hypervisor`].
    pub async fn pause(&self) -> Result<(), UvmError> {
        Ok(self.machine.pause().await?)
    }

    /// Lets its processors run again.
    ///
    /// # Errors
    /// [`UvmError::Hypervisor`].
    pub async fn resume(&self) -> Result<(), UvmError> {
        Ok(self.machine.resume().await?)
    }

    /// Ends it at once; see [`UtilityVm::wait`].
    pub fn kill(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.machine.kill();
    }

    /// Answers when it has ended and its cgroup is gone, from any number of tasks, always the same.
    pub async fn wait(&self) -> VmExit {
        let exit = self.machine.wait().await;
        // Its cgroup is empty now, if it is there already: a VM may have ended before it was put into one.
        if let Some(cgroup) = self.cgroup.lock().await.take()
            && let Err(error) = cgroup.await
        {
            tracing::warn!(%error, "a utility VM's cgroup may be left");
        }
        exit
    }

    /// What the guest printed on its console last: hostile text, bounded, control characters removed.
    pub async fn console(&self) -> String {
        self.machine.console().await
    }
}

/// Puts the VMM into its cgroup beside the fork, since that takes 10 to 15 ms.
fn attach(
    request: &StartRequest<'_>,
    prepared: &Prepared,
    pids: &[u32],
    given_up: &Arc<AtomicBool>,
) -> Option<JoinHandle<HostCgroup>> {
    let (path, &pid) = request.cgroup.clone().zip(pids.first())?;
    let limits = Limits { memory_bytes: prepared.machine.memory_bytes(), cpus_milli: prepared.cpus_milli };
    let given_up = Arc::clone(given_up);
    Some(tokio::task::spawn_blocking(move || HostCgroup::attach(&path, pid, limits, &given_up)))
}

/// Runs the fork and personalizes it.
async fn bring_up(
    machine: &dyn VirtualMachine,
    request: &StartRequest<'_>,
) -> Result<(GuestConnection, Personalized), UvmError> {
    let steps = async {
        let guest = GuestConnection::open(machine.connect()?).await.map_err(UvmError::Guest)?;
        machine.resume().await?;
        tracing::debug!("the fork runs");
        let personalized = personalize(&guest, &request.identity(), request.personalize_limit()).await?;
        Ok((guest, personalized))
    };
    unless_it_ends(machine, steps).await
}

/// Does what a machine is needed for; its end is an error.
async fn unless_it_ends<T>(
    machine: &dyn VirtualMachine,
    steps: impl Future<Output = Result<T, UvmError>>,
) -> Result<T, UvmError> {
    tokio::select! {
        outcome = steps => outcome,
        exit = machine.wait() => {
            let what = match exit.reason {
                ExitReason::GuestPanic => "its kernel panicked: ",
                _ => "",
            };
            Err(UvmError::Ended(format!("{what}{}", exit.detail)))
        }
    }
}

/// The slots of a place in a pod's machine: for the scratch disk, and for the layers.
fn slots_of(place: u32) -> [u32; 2] {
    [place * POD_CONTAINER_SLOTS, place * POD_CONTAINER_SLOTS + 1]
}

/// Where the guest finds the layers, top first.
fn layer_devices(slots: &SlotBindings) -> Vec<LayerDevice> {
    let count = u32::try_from(slots.layers.len()).unwrap_or(u32::MAX);
    let place = |number: u32| {
        let (slot, partition) =
            if slots.packed() { (FIRST_LAYER_SLOT, number + 1) } else { (FIRST_LAYER_SLOT + number, 0) };
        LayerDevice { slot, partition, ..Default::default() }
    };
    (0..count).rev().map(place).collect()
}

impl TemplateStore {
    /// Makes the template that a start with this image and backend and nominal size uses, if it is not there.
    ///
    /// # Errors
    /// [`UvmError`].
    pub async fn create(&self, image: &GuestImage, choice: BackendChoice) -> Result<TemplateSummary, UvmError> {
        let (hypervisor, key) = self.nominal(image, choice).await?;
        let builder = Builder { store: self, image, hypervisor: hypervisor.as_ref(), key: &key };
        let (template, _) = builder.find_or_build().await?;
        let id = &template.manifest.id;
        Ok(self.summary(id, &template.manifest, Some(id)))
    }

    /// The identifier of the template that a start with this image and backend and nominal size uses.
    ///
    /// # Errors
    /// [`UvmError`].
    pub async fn current(&self, image: &GuestImage, choice: BackendChoice) -> Result<proto::TemplateId, UvmError> {
        Ok(self.nominal(image, choice).await?.1.id())
    }

    async fn nominal(
        &self,
        image: &GuestImage,
        choice: BackendChoice,
    ) -> Result<(Arc<dyn Hypervisor>, TemplateKey), UvmError> {
        let hypervisor = backend::choose(choice, self).await?;
        let machine = MachineConfig::for_request(hypervisor.identity().accelerator, None, None)?;
        let key = TemplateKey::new(image, &machine, hypervisor.identity());
        Ok((hypervisor, key))
    }
}

#[cfg(test)]
mod tests {
    use proto::control::DiskRates;

    use super::*;

    #[test]
    fn layers_are_named_top_first() {
        let devices = |count: usize| {
            let layers = (0..count).map(|n| PathBuf::from(n.to_string())).collect();
            let slots = SlotBindings { scratch: None, layers, rates: DiskRates::default() };
            layer_devices(&slots).iter().map(|device| (device.slot, device.partition)).collect::<Vec<_>>()
        };
        assert_eq!(devices(1), [(1, 0)]);
        assert_eq!(devices(3), [(3, 0), (2, 0), (1, 0)]);
        assert_eq!(devices(5), [(1, 5), (1, 4), (1, 3), (1, 2), (1, 1)]);
    }
}
