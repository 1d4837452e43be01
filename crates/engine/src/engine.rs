//! The state that every request works on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use image::registry::RegistryClient;
use image::{ImageStore, rehearsal};
use proto::ContainerId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builds::{self, Builds};
use crate::container::store::ContainerStore;
use crate::events::EventBus;
use crate::flags::{Changeable, Settings};
use crate::network::Networks;
use crate::standby::Standby;
use crate::volume::VolumeStore;

/// One engine on one data root. Handlers take it as `State<Arc<Engine>>`.
pub struct Engine {
    /// What the flags resolved to.
    pub settings: Settings,
    /// See [`Engine::changeable`].
    changeable: RwLock<Arc<Changeable>>,
    /// The images of this data root. Synchronous: call it inside `spawn_blocking`.
    pub images: Arc<ImageStore>,
    /// The registries that images come from and go to.
    pub registries: RegistryClient,
    /// Every container of this data root.
    pub containers: ContainerStore,
    /// Every volume of this data root.
    pub volumes: VolumeStore,
    /// Builds that can be cancelled.
    pub builds: Builds,
    /// Every network of this data root.
    pub networks: Networks,
    /// What happened and happens.
    pub events: EventBus,
    /// The utility VM that stands by for the next hyperv container.
    pub standby: Standby,
    /// The engine's own identity, kept in the data root.
    pub id: String,
    /// Cancelled when what the last run left is taken up and cleared away: nothing is started before.
    pub taken_up: CancellationToken,
    /// Cancelled when the host goes down: nothing is started any more, what runs is stopped.
    pub host_goes_down: CancellationToken,
    /// Cancelled when the engine was told to stop.
    pub stopping: CancellationToken,
    /// The tasks that copy containers' output; a stopping engine waits until their logs are written.
    pub copying: TaskTracker,
}

impl Engine {
    /// Opens the stores below the data root. When: the root's lock is held.
    ///
    /// # Errors
    /// One line naming the folder or store that cannot be opened.
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        for folder in
            [settings.data_root.join(CONTAINERS), settings.exec_root.join(BUNDLES), settings.exec_root.join(SOCKETS)]
        {
            make_private(&folder)?;
        }
        builds::clear(&settings.data_root).context("cannot clear the folder of builds")?;
        let images = settings.data_root.join("images");
        let images =
            ImageStore::open(&images).with_context(|| format!("cannot open the image store {}", images.display()))?;
        let images = Arc::new(images);
        let known = settings.data_root.join("registries.redb");
        let registries = RegistryClient::open(Arc::clone(&images), settings.registries.clone(), &known)
            .context("cannot set up the access to registries")?;
        let volumes = settings.data_root.join(VOLUMES);
        let ready = settings.standby_networks.into();
        let networks = Networks::open(&settings.data_root, &settings.exec_root, settings.bip, ready)
            .context("cannot open the networks")?;
        Ok(Self {
            id: identity(&settings.data_root.join("engine-id"))?,
            images,
            registries,
            containers: ContainerStore::default(),
            volumes: VolumeStore::open(volumes.clone())
                .with_context(|| format!("cannot open the folder of volumes {}", volumes.display()))?,
            builds: Builds::default(),
            networks,
            events: EventBus::default(),
            standby: Standby::new(settings.standby_vms != Some(0) && rehearsal::AVAILABLE),
            changeable: RwLock::new(Arc::new(settings.changeable.clone())),
            taken_up: CancellationToken::new(),
            host_goes_down: CancellationToken::new(),
            stopping: CancellationToken::new(),
            copying: TaskTracker::new(),
            settings,
        })
    }

    /// What the last reload has set.
    #[must_use]
    pub fn changeable(&self) -> Arc<Changeable> {
        Arc::clone(&self.changeable.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what a reload has changed.
    pub fn change(&self, changeable: Changeable) {
        *self.changeable.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(changeable);
    }

    /// The folder with one folder per container: what is kept of it.
    #[must_use]
    pub fn containers_dir(&self) -> PathBuf {
        self.settings.data_root.join(CONTAINERS)
    }

    /// The folder with one bundle per container that runs.
    #[must_use]
    pub fn bundles_dir(&self) -> PathBuf {
        self.settings.exec_root.join(BUNDLES)
    }

    /// A container's bundle, which is there while it runs.
    #[must_use]
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.bundles_dir().join(id.as_str())
    }

    /// The folder with the bundle of the utility VM that stands by. On the same file system as the containers' bundles,
    /// one of which it becomes.
    #[must_use]
    pub fn standby_dir(&self) -> PathBuf {
        self.settings.exec_root.join(STANDBY)
    }

    /// The folder with one folder per operation on a stopped container's files.
    #[must_use]
    pub fn operations_dir(&self) -> PathBuf {
        self.settings.exec_root.join(OPERATIONS)
    }

    /// The folder with what that VM rehearses with. On the same file system as the blank scratch disks.
    #[must_use]
    pub fn rehearsals_dir(&self) -> PathBuf {
        self.settings.data_root.join(STANDBY)
    }

    /// The socket of a container's shim, which is there while it runs. It is short, since a socket's path may have 107
    /// characters only.
    #[must_use]
    pub fn socket(&self, id: &ContainerId) -> PathBuf {
        let id = id.as_str();
        self.settings.exec_root.join(SOCKETS).join(id.get(..12).unwrap_or(id))
    }
}

const CONTAINERS: &str = "containers";
const VOLUMES: &str = "volumes";
const BUNDLES: &str = "containers";
const SOCKETS: &str = "s";
const STANDBY: &str = "standby";
const OPERATIONS: &str = "f";

fn make_private(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))
}

/// Reads the engine's identity, or makes one: a random UUID.
fn identity(path: &Path) -> anyhow::Result<String> {
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    if !kept.trim().is_empty() {
        return Ok(kept.trim().to_owned());
    }
    let fresh = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot draw an identity")?;
    std::fs::write(path, &fresh).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fresh.trim().to_owned())
}
