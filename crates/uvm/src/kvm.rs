//! The backend that runs machines in our own VMM, a process of `bulkhead-vmm` per machine, driven over `vmm::protocol`.

mod control;
mod disks;
mod installation;
mod machine;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use proto::control::Accelerator;
use vmm::protocol::Request;

use crate::guest_image::GuestImage;
use crate::hypervisor::{FrozenMachine, Hypervisor, HypervisorError, SlotBindings, VirtualMachine};
use crate::key::BackendIdentity;
use crate::machine::MachineConfig;
use crate::network_slots::NetworkSlots;

pub(crate) use installation::VmmInstallation;
use machine::Waiting;

/// Our own VMM.
#[derive(Debug)]
pub(crate) struct OwnVmm {
    installation: VmmInstallation,
    identity: BackendIdentity,
    /// The process for the next fork, and of what size its machine is.
    waiting: Mutex<Option<(MachineConfig, Waiting)>>,
}

impl OwnVmm {
    /// Finds the installed program. Whether KVM is usable on this host is for [`crate::probe`] to say.
    ///
    /// # Errors
    /// [`HypervisorError::NoVmm`].
    pub(crate) fn find() -> Result<Self, HypervisorError> {
        let installation = VmmInstallation::find()?;
        let identity = BackendIdentity {
            name: format!("bulkhead-vmm {}", env!("CARGO_PKG_VERSION")),
            accelerator: Accelerator::Kvm,
            installation: installation.fingerprint().to_owned(),
        };
        Ok(Self { installation, identity, waiting: Mutex::default() })
    }
}

impl OwnVmm {
    /// The process that was prepared for a machine of this size, if it still waits.
    fn take_waiting(&self, config: &MachineConfig) -> Option<Waiting> {
        let (size, waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (size == *config && waiting.is_alive()).then_some(waiting)
    }
}

#[async_trait]
impl Hypervisor for OwnVmm {
    fn identity(&self) -> &BackendIdentity {
        &self.identity
    }

    fn takes_working_sets(&self) -> bool {
        true
    }

    async fn boot(
        &self,
        image: &GuestImage,
        config: &MachineConfig,
        memory: File,
        run_dir: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError> {
        let open = |path: &Path| {
            File::open(path).map_err(|source| HypervisorError::Io { action: "open the guest image", source })
        };
        let mut files: Vec<OwnedFd> =
            vec![memory.into(), open(&image.kernel())?.into(), open(&image.initramfs())?.into()];
        files.extend(taps(&NetworkSlots::open(None).await?)?);
        // There is no PCI bus to look for.
        let command_line = format!("{} pci=off", config.kernel_command_line());
        let waiting = Waiting::start(&self.installation, config, run_dir).await?;
        Ok(Box::new(waiting.make("starting", &Request::Boot { command_line }, files).await?))
    }

    async fn prepare(&self, config: &MachineConfig, run_dir: &Path) -> Result<Vec<u32>, HypervisorError> {
        let started = Waiting::start(&self.installation, config, run_dir).await?;
        let processes = vec![started.process_id()];
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some((config.clone(), started));
        Ok(processes)
    }

    async fn fork(
        &self,
        frozen: FrozenMachine,
        config: &MachineConfig,
        bindings: &SlotBindings,
        network: &NetworkSlots,
        run_dir: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError> {
        let (disks, disk_files) = disks::open(bindings, config.disk_slots())?;
        let mut files: Vec<OwnedFd> = vec![frozen.memory.into(), frozen.state.into()];
        files.extend(disk_files);
        files.extend(taps(network)?);
        let request = Request::Fork { disks, rates: disks::rates(bindings.rates), working_set: frozen.working_set };
        let waiting = match self.take_waiting(config) {
            Some(waiting) => waiting,
            None => Waiting::start(&self.installation, config, run_dir).await?,
        };
        Ok(Box::new(waiting.make("loading the template", &request, files).await?))
    }
}

fn taps(network: &NetworkSlots) -> Result<Vec<OwnedFd>, HypervisorError> {
    network.copies().map_err(|source| HypervisorError::Io { action: "hand out the network slots", source })
}
