//! The backend that runs machines in QEMU, a child process per machine, driven over QMP.

mod arguments;
mod installation;
mod machine;
mod slots;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use proto::control::Accelerator;
use serde_json::json;

use crate::counter;
use crate::guest_image::GuestImage;
use crate::hypervisor::{FrozenMachine, Hypervisor, HypervisorError, SlotBindings, VirtualMachine};
use crate::key::BackendIdentity;
use crate::machine::MachineConfig;
use crate::network_slots::NetworkSlots;
use crate::qmp::MigrationEnd;

use arguments::Arguments;
pub(crate) use installation::QemuInstallation;
use machine::QemuMachine;

/// How long QEMU may take to start and load a frozen state; it takes 0.06 s on an idle machine.
const LOAD_LIMIT: Duration = Duration::from_secs(30);

/// QEMU with one accelerator.
#[derive(Debug)]
pub struct Qemu {
    installation: QemuInstallation,
    identity: BackendIdentity,
}

impl Qemu {
    /// Finds the installed QEMU. Whether `accelerator` is usable on this host is for [`crate::probe`] to say.
    ///
    /// # Errors
    /// [`HypervisorError::NotInstalled`] and [`HypervisorError::UnknownVersion`].
    pub fn find(accelerator: Accelerator) -> Result<Self, HypervisorError> {
        Ok(Self::new(QemuInstallation::find()?, accelerator))
    }

    pub(crate) fn new(installation: QemuInstallation, accelerator: Accelerator) -> Self {
        let identity = BackendIdentity {
            name: format!("qemu {}", installation.version()),
            accelerator,
            installation: installation.fingerprint().to_owned(),
        };
        Self { installation, identity }
    }

    fn arguments(&self, config: &MachineConfig) -> Arguments {
        Arguments::new(self.identity.accelerator, config)
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn identity(&self) -> &BackendIdentity {
        &self.identity
    }

    async fn boot(
        &self,
        image: &GuestImage,
        config: &MachineConfig,
        memory: File,
        run_dir: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError> {
        let mut arguments = self.arguments(config);
        arguments.shared_memory(memory, config);
        let about_host = match self.identity.accelerator {
            Accelerator::Tcg => format!("tsc_early_khz={}", counter::kilohertz().await),
            // The guest asks the hypervisor.
            Accelerator::Kvm => String::new(),
        };
        arguments.kernel(image, config, &about_host);
        arguments.slots(slots::empty(config, 0));
        arguments.network(taps(&NetworkSlots::open(None).await?)?, config);
        let machine = QemuMachine::start(&self.installation, arguments, config, run_dir).await?;
        machine.command("starting", "qmp_capabilities", json!({})).await?;
        Ok(Box::new(machine))
    }

    async fn prepare(&self, _config: &MachineConfig, _run_dir: &Path) -> Result<Vec<u32>, HypervisorError> {
        // All that a QEMU is to have must be told when it is started.
        Ok(Vec::new())
    }

    async fn fork(
        &self,
        frozen: FrozenMachine,
        config: &MachineConfig,
        bindings: &SlotBindings,
        network: &NetworkSlots,
        run_dir: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError> {
        let mut arguments = self.arguments(config);
        arguments.private_memory(frozen.memory, config, self.installation.maps_read_only_files());
        arguments.slots(slots::bound(config, bindings, 0)?);
        arguments.network(taps(network)?, config);
        let state = arguments.incoming(frozen.state);
        let machine = QemuMachine::start(&self.installation, arguments, config, run_dir).await?;
        tracing::debug!("qemu is spawned");
        match tokio::time::timeout(LOAD_LIMIT, load(&machine, state)).await {
            Ok(loaded) => loaded?,
            Err(_) => {
                let limit_s = LOAD_LIMIT.as_secs();
                return Err(HypervisorError::Deadline {
                    during: "loading the template",
                    limit_s,
                    detail: String::new(),
                });
            }
        }
        machine.limit(bindings.rates).await?;
        Ok(Box::new(machine))
    }
}

fn taps(network: &NetworkSlots) -> Result<Vec<OwnedFd>, HypervisorError> {
    network.copies().map_err(|source| HypervisorError::Io { action: "hand out the network slots", source })
}

/// Gives all commands at once, since every round trip is one more time that two processes take turns.
async fn load(machine: &QemuMachine, state: i32) -> Result<(), HypervisorError> {
    let during = "loading the template";
    let capabilities = json!({"capabilities": machine::frozen_capabilities()});
    let greeted = machine.begin(during, "qmp_capabilities", json!({})).await?;
    let capable = machine.begin(during, "migrate-set-capabilities", capabilities).await?;
    // A machine that arrives elsewhere tells the network so, with the address that the template has. A fork must not.
    let silent = machine.begin(during, "migrate-set-parameters", json!({"announce-rounds": 0})).await?;
    let begun = machine.begin(during, "migrate-incoming", json!({"uri": format!("fd:{state}")})).await?;
    machine.finish(during, greeted.await).await?;
    tracing::debug!("qemu answers");
    machine.finish(during, capable.await).await?;
    machine.finish(during, silent.await).await?;
    machine.finish(during, begun.await).await?;
    match machine.qmp().migration_end().await {
        Ok(MigrationEnd::Completed) => Ok(()),
        Ok(MigrationEnd::Failed) => Err(HypervisorError::State { verb: "loaded", detail: machine.last_words() }),
        Err(lost) => machine.finish(during, Err(lost)).await.map(|_| ()),
    }
}
