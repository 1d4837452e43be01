//! What a fork has before its template is looked for: what is known of it, and a hypervisor's process that waits for it.

use std::path::Path;
use std::sync::Arc;

use proto::control::{Accelerator, UtilityVmRequest};

use crate::backend;
use crate::builder::Builder;
use crate::error::UvmError;
use crate::guest_image::GuestImage;
use crate::hypervisor::Hypervisor;
use crate::key::TemplateKey;
use crate::machine::MachineConfig;
use crate::store::{TemplateError, TemplateStore};
use crate::template::Template;

/// Everything that is known before a template is looked for.
pub(crate) struct Prepared {
    pub(crate) store: TemplateStore,
    image: GuestImage,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) machine: MachineConfig,
    pub(crate) key: TemplateKey,
    pub(crate) cpus_milli: Option<u64>,
}

impl Prepared {
    pub(crate) async fn new(vm: &UtilityVmRequest, pod: bool) -> Result<Self, UvmError> {
        let image = GuestImage::open(&vm.guest_image)?;
        let store = TemplateStore::open(&vm.template_store)?;
        let hypervisor = backend::choose(vm.backend, &store).await?;
        let accelerator = hypervisor.identity().accelerator;
        if vm.boundary_required && accelerator == Accelerator::Tcg {
            return Err(UvmError::NoBoundary);
        }
        let machine = MachineConfig::for_request(accelerator, vm.memory_bytes, vm.cpus_milli)?;
        let machine = if pod { machine.for_pod() } else { machine };
        let key = TemplateKey::new(&image, &machine, hypervisor.identity());
        Ok(Self { store, image, hypervisor, machine, key, cpus_milli: vm.cpus_milli })
    }

    /// Has the fork begin: in the process that waits, if that is of its size and of its hypervisor; otherwise in a new one.
    pub(crate) async fn begin(self, waiting: Option<WaitingVmm>, run_dir: &Path) -> Result<Self, UvmError> {
        match waiting {
            Some(waiting) if waiting.fits(&self) => Ok(Self { hypervisor: waiting.hypervisor, ..self }),
            _ => {
                self.hypervisor.prepare(&self.machine, run_dir).await?;
                Ok(self)
            }
        }
    }

    pub(crate) async fn template(&self) -> Result<(Template, bool), TemplateError> {
        let builder =
            Builder { store: &self.store, image: &self.image, hypervisor: self.hypervisor.as_ref(), key: &self.key };
        builder.find_or_build().await
    }
}

/// A hypervisor's process that has built its jail and a machine without memory, and waits for the fork that it is to be. There is no
/// guest in it yet, nor any file of a template. Dropping it ends it.
pub struct WaitingVmm {
    hypervisor: Arc<dyn Hypervisor>,
    machine: MachineConfig,
    processes: Vec<u32>,
}

impl WaitingVmm {
    /// Starts one for containers that ask for this; `None` with a hypervisor whose process is told everything when it starts. Shape:
    /// `run_dir` takes its log.
    ///
    /// # Errors
    /// [`UvmError`], as [`UtilityVm::start`](crate::UtilityVm::start) before there is a machine.
    pub async fn start(vm: &UtilityVmRequest, run_dir: &Path) -> Result<Option<Self>, UvmError> {
        let Prepared { hypervisor, machine, .. } = Prepared::new(vm, false).await?;
        let processes = hypervisor.prepare(&machine, run_dir).await?;
        Ok((!processes.is_empty()).then_some(Self { hypervisor, machine, processes }))
    }

    /// The host's processes that it is.
    #[must_use]
    pub fn process_ids(&self) -> &[u32] {
        &self.processes
    }

    /// That of an earlier installation's is for nobody, and neither is one of another size.
    fn fits(&self, asked: &Prepared) -> bool {
        self.machine == asked.machine && self.hypervisor.identity() == asked.hypervisor.identity()
    }
}

impl std::fmt::Debug for WaitingVmm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitingVmm").field("processes", &self.processes).finish_non_exhaustive()
    }
}
