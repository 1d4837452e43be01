//! Prepares what stands by: a bundle that is nobody's, and a shim that rehearses with it; or a shim with a hypervisor's process that waits.
//!
//! When it goes where is decided in [`crate::standby`]; [`super::bundle`] gives it to a container.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::models::{ContainerConfig, HostConfig};
use hostnet::ReadySandbox;
use image::rehearsal;
use proto::control::{ContainerBundle, ExitReport, LayerFile, UtilityVmRequest, Writable};
use proto::network::SandboxNetwork;
use proto::{ErrorKind, Isolation};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::{bundle, create, names, shim};
use crate::container::{Container, kept};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::spec::{self, NetworkNamespace, SpecInput};
use crate::standby::{Kind, PATIENCE, Prepare, StandbyShim, Vm};
use crate::task::Task;

/// What the shim calls the container that there is none of.
const ID: &str = "standby";
/// How long a killed shim may take to end.
const END: Duration = Duration::from_secs(5);

/// Keeps a utility VM standing by until the engine stops. The task ends when that VM is gone.
pub fn keep_standby(engine: &Arc<Engine>) -> JoinHandle<()> {
    let preparer = ShimPreparer::new(engine);
    tokio::spawn(async move {
        let engine = &preparer.engine;
        engine.standby.keep(&preparer, &engine.stopping).await;
        clear_standby(engine).await;
    })
}

/// Removes what an earlier engine left standing by, or this one at its end. The shims end with the engine that started
/// them; one that is slow to is killed.
pub async fn clear_standby(engine: &Arc<Engine>) {
    let names = |folder: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    for folder in names(&engine.standby_dir()) {
        tracing::info!(folder = %folder.display(), "clearing away a utility VM that stood by");
        shim::delete(engine, ID, &folder).await;
        shim::remove_files(folder.clone(), StandbyShim::socket(&folder)).await;
    }
    remove_folder(&engine.rehearsals_dir()).await;
}

async fn remove_folder(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove a rehearsal's files");
        }
        _ => {}
    }
}

/// The utility VM that stands by, taken for a container that is about to have it.
pub struct Reserved<'a> {
    engine: &'a Arc<Engine>,
    vm: Option<StandbyShim>,
}

impl<'a> Reserved<'a> {
    /// Takes it, if there is one and the container can have it.
    pub fn take(engine: &'a Arc<Engine>, container: &Container, host: &HostConfig) -> Self {
        let asked = bundle::utility_vm(engine, host, bundle::machine_id(&container.id));
        let wanted = container.isolation == Isolation::Hyperv;
        Self { engine, vm: wanted.then(|| engine.standby.take(|vm: &StandbyShim| vm.fits(&asked))).flatten() }
    }

    /// Does what needs its namespace, which may be taken. When that fails, the VM stands by again, unless it lost it.
    ///
    /// # Errors
    /// What the work says.
    pub fn with_sandbox(mut self, work: impl FnOnce(&mut Option<ReadySandbox>) -> ApiResult<()>) -> ApiResult<Self> {
        let mut sandbox = self.vm.as_mut().and_then(|vm| vm.sandbox.take());
        let had = sandbox.is_some();
        let outcome = work(&mut sandbox);
        match (outcome, self.vm.as_mut()) {
            (Ok(()), _) => {
                // Nobody waits for the kernel.
                if let Some(unused) = sandbox {
                    tokio::task::spawn_blocking(move || crate::network::let_go(&unused));
                }
                Ok(self)
            }
            (Err(error), Some(vm)) => {
                let lost = had && sandbox.is_none();
                vm.sandbox = sandbox;
                self.give_back(lost);
                Err(error)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn give_back(&mut self, lost: bool) {
        let Some(vm) = self.vm.take() else { return };
        let refused = if lost { Err(vm) } else { self.engine.standby.put_back(vm) };
        if let Err(vm) = refused {
            discard_later(self.engine, vm, None);
        }
    }

    /// Gives the container its shim: the shim's process id. `place` is where the container's bundle and socket are to be. Without
    /// one, or when that shim has died, the place stays empty.
    pub fn hand_over(mut self, container: &Container, place: (&Path, &Path)) -> Option<u32> {
        let vm = self.vm.take()?;
        let (bundle, socket) = place;
        let fault = if vm.is_alive() {
            vm.hand_over(bundle, socket).err().map(|error| format!("it cannot become a container's: {error}"))
        } else {
            Some("it ended by itself".to_owned())
        };
        match fault {
            None => {
                tracing::debug!(id = %container.id, pid = vm.shim_pid, "takes the utility VM that stands by");
                // How the rehearsal ended, should the shim ever say so, is not how the container did.
                let _ = std::fs::remove_file(bundle.join(ExitReport::FILE_NAME));
                Some(vm.shim_pid)
            }
            Some(fault) => {
                discard_later(self.engine, vm, Some(fault));
                None
            }
        }
    }
}

/// Takes down a standby that a container was to get and that is of no use, or has no place any more.
fn discard_later(engine: &Arc<Engine>, vm: StandbyShim, fault: Option<String>) {
    let engine = Arc::clone(engine);
    tokio::spawn(async move { discard(&engine, vm, fault).await });
}

async fn discard(engine: &Arc<Engine>, vm: StandbyShim, fault: Option<String>) {
    if let Some(fault) = fault {
        let log = shim::log_tail(&vm.folder);
        tracing::warn!("no utility VM stands by: {fault}; its shim's log ends with:\n{log}");
    }
    vm.kill();
    match tokio::time::timeout(END, shim::reaped(vm.shim_pid)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(pid = vm.shim_pid, %error, "cannot reap a standby's shim"),
        Err(_) => tracing::warn!(pid = vm.shim_pid, "a standby's shim does not end"),
    }
    shim::delete(engine, ID, &vm.folder).await;
    shim::remove_files(vm.folder.clone(), StandbyShim::socket(&vm.folder)).await;
    remove_folder(&vm.rehearsal).await;
}

/// Makes standbys with shims.
struct ShimPreparer {
    engine: Arc<Engine>,
    /// The rehearsal's layer, made once.
    layer: OnceCell<LayerFile>,
    made: AtomicU64,
}

impl ShimPreparer {
    fn new(engine: &Arc<Engine>) -> Self {
        Self { engine: Arc::clone(engine), layer: OnceCell::new(), made: AtomicU64::new(0) }
    }

    async fn layer(&self) -> Result<LayerFile, String> {
        let folder = self.engine.rehearsals_dir();
        let make = async || {
            let made = tokio::task::spawn_blocking(move || make_layer(&folder)).await;
            made.map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))
        };
        self.layer.get_or_try_init(make).await.cloned()
    }
}

fn make_folder(folder: &Path) -> ApiResult<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| ApiError::caused("cannot prepare its folder", &error))
}

/// Makes the layer of all rehearsals of an engine's run.
fn make_layer(folder: &Path) -> anyhow::Result<LayerFile> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join("layer.erofs");
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    Ok(LayerFile { diff_id: rehearsal::write_layer(&file)?, path })
}

impl Prepare for ShimPreparer {
    type Vm = StandbyShim;

    async fn begin(&self, kind: Kind) -> Result<StandbyShim, String> {
        let number = self.made.fetch_add(1, Ordering::Relaxed).to_string();
        let engine = Arc::clone(&self.engine);
        let layer = match kind {
            Kind::Vm => Some(self.layer().await?),
            Kind::Process => None,
        };
        let made = tokio::task::spawn_blocking(move || {
            let plan = Plan::new(&engine, &number)?;
            let Some(layer) = layer else { return plan.make_waiting(&engine).inspect_err(|_| plan.take_back()) };
            let sandbox = engine.networks.make_ready_for_guest();
            let mut vm = plan.make(&engine, layer, sandbox.as_ref()).inspect_err(|_| plan.take_back())?;
            vm.sandbox = sandbox;
            Ok::<_, ApiError>(vm)
        });
        made.await.map_err(|error| error.to_string())?.map_err(|error| error.message)
    }

    async fn ready(&self, vm: &StandbyShim) -> Result<(), String> {
        let task = Task::connect(&StandbyShim::socket(&vm.folder), ID).await.map_err(|error| error.message)?;
        match task.pids_within(PATIENCE).await {
            // Any answer, even that there is no task, tells that the shim serves; it does once its VM is ready.
            Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) => {
                return Err(error.message);
            }
            _ => {}
        }
        remove_folder(&vm.rehearsal).await;
        tracing::debug!(pid = vm.shim_pid, kind = ?vm.kind, "a shim stands by");
        Ok(())
    }

    async fn discard(&self, vm: StandbyShim, fault: Option<String>) {
        discard(&self.engine, vm, fault).await;
    }
}

/// Everything that a standby's bundle says.
struct Plan {
    folder: std::path::PathBuf,
    rehearsal: std::path::PathBuf,
    cgroup: String,
    request: UtilityVmRequest,
}

impl Plan {
    fn new(engine: &Engine, number: &str) -> ApiResult<Self> {
        let machine_id = hex::encode(names::random::<16>()?);
        Ok(Self {
            folder: engine.standby_dir().join(number),
            rehearsal: engine.rehearsals_dir().join(number),
            cgroup: format!("{}/{ID}-{number}", engine.settings.cgroup_parent),
            request: bundle::utility_vm(engine, &HostConfig::default(), machine_id),
        })
    }

    /// Writes the bundle and starts its shim, which reads it at once.
    fn make(&self, engine: &Engine, layer: LayerFile, sandbox: Option<&ReadySandbox>) -> ApiResult<StandbyShim> {
        make_folder(&self.folder)?;
        make_folder(&self.rehearsal)?;
        let disk = kept(&self.rehearsal, create::SCRATCH);
        create::make_scratch(engine, &disk, &HostConfig::default())?;
        bundle::write_json(&self.folder.join(bundle::SPEC_FILE), &self.spec()?)?;
        let description = ContainerBundle {
            isolation: Isolation::Hyperv,
            layers: vec![layer],
            writable: Writable::Scratch { disk },
            cgroup: self.cgroup.clone(),
            utility_vm: Some(self.request.clone()),
            parts: Vec::new(),
            network: sandbox.map(|sandbox| SandboxNetwork {
                namespace: sandbox.path(),
                interfaces: Vec::new(),
                gateway4: None,
                gateway6: None,
                routes: Vec::new(),
            }),
        };
        bundle::write_json(&self.folder.join(ContainerBundle::FILE_NAME), &description)?;
        self.start_shim(engine, Kind::Vm)
    }

    /// Starts a shim with no more than a process that waits.
    fn make_waiting(&self, engine: &Engine) -> ApiResult<StandbyShim> {
        make_folder(&self.folder)?;
        bundle::write_json(&self.folder.join(UtilityVmRequest::WAITING_FILE_NAME), &self.request)?;
        self.start_shim(engine, Kind::Process)
    }

    fn start_shim(&self, engine: &Engine, kind: Kind) -> ApiResult<StandbyShim> {
        let started = shim::spawn_standby(engine, ID, &self.folder, &StandbyShim::socket(&self.folder));
        let pid = started.map_err(|error| ApiError::caused("cannot start its shim", &error))?;
        let vm = StandbyShim::new(kind, self.folder.clone(), self.rehearsal.clone(), pid, self.request.clone());
        // Without its folder, which goes now, the shim ends by itself.
        vm.inspect_err(|_| shim::reap(pid)).map_err(|error| ApiError::caused("cannot watch its shim", &error))
    }

    /// The spec of a container as most are: nothing asked for but its command.
    fn spec(&self) -> ApiResult<oci_spec::runtime::Spec> {
        let config = ContainerConfig {
            cmd: Some(vec![rehearsal::PROGRAM.to_owned()]),
            hostname: Some(ID.to_owned()),
            ..ContainerConfig::default()
        };
        let host = HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() };
        create::write_network_files(&self.rehearsal, &config, &host)?;
        let input = SpecInput {
            isolation: Isolation::Hyperv,
            config: &config,
            host_config: &host,
            mounts: &[],
            rootfs: &self.folder.join(bundle::ROOTFS),
            network: NetworkNamespace::Own,
            files: &self.rehearsal,
            hostname: ID,
            cgroup: &self.cgroup,
            terminal: false,
        };
        spec::build(&input).map_err(|error| ApiError::new(error.kind(), chain(&error)))
    }

    /// Removes what [`Plan::make`] made before it failed.
    fn take_back(&self) {
        for folder in [&self.folder, &self.rehearsal] {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                tracing::debug!(folder = %folder.display(), %error, "nothing of a standby to remove");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::flags::Flags;
    use crate::standby::Vm;

    /// An engine whose shim is this shell script; `delete` does nothing.
    fn engine(root: &Path, script: &str) -> Arc<Engine> {
        let shim = root.join("shim");
        let text = format!("#!/bin/sh\nfor word; do [ \"$word\" = delete ] && exit 0; done\n{script}\n");
        std::fs::write(&shim, text).unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        let roots = ["data-root", "exec-root", "shim"].map(|name| format!("--{name}={}", root.join(name).display()));
        let flags = Flags::parse_from(["bulkheadd".to_owned()].into_iter().chain(roots));
        Arc::new(Engine::open(flags.settings().unwrap()).unwrap())
    }

    async fn begun(preparer: &ShimPreparer) -> Option<StandbyShim> {
        match preparer.begin(Kind::Vm).await {
            Err(error) if error.contains("e2fsprogs") => {
                eprintln!("SKIPPED: {error}");
                None
            }
            begun => Some(begun.unwrap()),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shim_that_cannot_make_it_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path(), "echo \"$@\"; exit 3");
        let preparer = ShimPreparer::new(&engine);
        let Some(vm) = begun(&preparer).await else { return };
        let bundle = std::fs::read(vm.folder.join(ContainerBundle::FILE_NAME)).unwrap();
        let bundle: ContainerBundle = serde_json::from_slice(&bundle).unwrap();
        let Writable::Scratch { disk } = &bundle.writable else { panic!("{bundle:?}") };
        assert!(disk.exists() && bundle.layers[0].path.exists());
        assert!(vm.fits(&bundle.utility_vm.unwrap()));
        let spec = oci_spec::runtime::Spec::load(vm.folder.join(bundle::SPEC_FILE)).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().args().as_deref().unwrap(), [rehearsal::PROGRAM]);
        preparer.ready(&vm).await.unwrap_err();
        assert_eq!(shim::log_tail(&vm.folder), "-namespace bulkhead -id standby -standby serve");
        let (folder, disk) = (vm.folder.clone(), disk.clone());
        preparer.discard(vm, Some("it ended".to_owned())).await;
        assert!(!folder.exists() && !disk.exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_waits_for_what_is_asked_for_most_and_rehearses_nothing() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path(), "exec sleep 100");
        let preparer = ShimPreparer::new(&engine);
        let shim = preparer.begin(Kind::Process).await.unwrap();
        let asked = std::fs::read(shim.folder.join(UtilityVmRequest::WAITING_FILE_NAME)).unwrap();
        let asked: UtilityVmRequest = serde_json::from_slice(&asked).unwrap();
        assert!(shim.is_alive() && shim.fits(&asked) && asked.memory_bytes.is_none());
        assert!(!shim.folder.join(ContainerBundle::FILE_NAME).exists() && !engine.rehearsals_dir().exists());
        preparer.discard(shim, None).await;
        assert_eq!(std::fs::read_dir(engine.standby_dir()).unwrap().count(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shim_that_waits_is_killed_and_a_killed_engines_folders_go() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path(), "exec sleep 100");
        let preparer = ShimPreparer::new(&engine);
        let Some(vm) = begun(&preparer).await else { return };
        assert!(vm.is_alive());
        let pid = vm.shim_pid;
        preparer.discard(vm, None).await;
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        std::fs::create_dir_all(engine.standby_dir().join("7")).unwrap();
        clear_standby(&engine).await;
        assert_eq!(std::fs::read_dir(engine.standby_dir()).unwrap().count(), 0);
        assert!(!engine.rehearsals_dir().exists());
    }
}
