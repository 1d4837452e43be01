//! The container's files for the host, in a guest that runs it or only has its disks mounted.
//!
//! One operation a substream, as `proto::files` has it, by the same code as on the host. Each has a thread of its own: PID 1
//! goes on meanwhile.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use container::archive::{Attachment, ContainerFiles, Root, serve};
use container::rootfs::{self, LayerSource, MountedRootfs};
use proto::files::FilesRequest;
use proto::gcs::wire::MountRootRequest;
use proto::{ErrorKind, Status};
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use crate::compute::{self, ComputeError, Scratch};
use crate::machine::Machine;
use crate::name_files;
use crate::places::{MERGED, Places, UPPER};
use crate::shares::SharedMount;
use crate::substreams::Substream;

/// Where the layers are seen without the container's changes, for the time of one operation.
const LOWER: &str = "/run/bulkhead/lower";
/// Where small files are that one operation has mounted.
const COPY: &str = "/run/bulkhead/copy";

/// Who has a container's files mounted.
pub trait FilesOwner: Send + Sync {
    /// The container's layers, lowest first.
    ///
    /// # Errors
    /// `FailedPrecondition` when no container's files are mounted.
    fn layers(&self) -> Result<Vec<LayerSource>, Status>;

    /// The host's folders that the container has; none when there is no container, only its files.
    fn shared(&self) -> Vec<SharedMount>;

    /// The container's first process; none when there is no container.
    fn first_process(&self) -> Option<u32>;

    /// Stops the container's processes, or lets them go on. False when there is no container, only its files.
    ///
    /// # Errors
    /// What the container says.
    fn set_frozen(&self, frozen: bool) -> Result<bool, Status>;
}

/// A container's disks, mounted, without a container.
pub struct MountedFiles {
    /// Before the scratch: what is dropped first is unmounted first.
    rootfs: MountedRootfs,
    scratch: Scratch,
    layers: Vec<LayerSource>,
    _machine: Machine,
}

impl MountedFiles {
    /// Mounts layers and scratch.
    ///
    /// # Errors
    /// As [`compute::mount_root`].
    pub fn mount(request: &MountRootRequest, machine: Machine) -> Result<Self, ComputeError> {
        let Machine { mut slots, spare } = machine;
        let (rootfs, scratch, layers) =
            compute::mount_root(&Places::of(0), &request.layers, request.scratch_slot, &mut slots)?;
        // What waits for a container goes on waiting, since to end it would take time.
        Ok(Self { rootfs, scratch, layers, _machine: Machine { slots, spare } })
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[LayerSource] {
        &self.layers
    }

    /// Unmounts them, so that the scratch is clean.
    ///
    /// # Errors
    /// `Rootfs`, `Scratch`.
    pub fn unmount(self) -> Result<(), ComputeError> {
        self.rootfs.unmount()?;
        self.scratch.unmount()
    }
}

/// Serves every operation that the host begins.
pub async fn serve_all(mut wanted: mpsc::UnboundedReceiver<Substream>, owner: Arc<dyn FilesOwner>) {
    while let Some(stream) = wanted.recv().await {
        let owner = Arc::clone(&owner);
        let (from, to) = tokio::io::split(stream);
        let (mut from, mut to) = (SyncIoBridge::new(from), SyncIoBridge::new(to));
        tokio::task::spawn_blocking(move || {
            let served = serve(&mut from, &mut to, |request| open(&owner, request)).and_then(|()| {
                to.shutdown()?;
                // Until the host has taken everything and hangs up.
                io::copy(&mut from.by_ref(), &mut io::sink()).map(drop)
            });
            if let Err(error) = served {
                tracing::info!("an operation on the container's files broke off: {error}");
            }
        });
    }
}

/// Opens what a request needs. What is given back besides undoes it on drop.
fn open(owner: &Arc<dyn FilesOwner>, request: &FilesRequest) -> Result<(ContainerFiles, Kept), Status> {
    let layers = owner.layers()?;
    let mut kept = Kept::default();
    let (upper, lower) = match request {
        FilesRequest::Layer { freeze, .. } => {
            if *freeze {
                kept.frozen = Frozen::freeze(owner)?;
            }
            (Some(root(UPPER)?), None)
        }
        FilesRequest::Changes { .. } => {
            let lower = Lower::mount(&layers)?;
            let opened = root(&lower.path)?;
            kept.lower = Some(lower);
            (Some(root(UPPER)?), Some(opened))
        }
        _ => (None, None),
    };
    let shared = owner.shared();
    let asked = |shared: &&SharedMount| request.mounts().iter().any(|mount| mount.destination == shared.destination);
    let mounts = shared.iter().filter(asked).map(attachment).collect::<io::Result<Vec<_>>>();
    let mut mounts = mounts.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
    for mount in request.mounts() {
        // Files of names are mounted in the container's own namespace, if it runs: a copy stands for each.
        let read = || name_files::read(owner.first_process()?, &mount.destination);
        if let Some(text) = mount.text.clone().or_else(read) {
            let (file, mounted) = Copy::mount(&text, &mount.destination)
                .map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
            kept.copies.push(file);
            mounts.push(mounted);
        }
    }
    Ok((ContainerFiles { merged: root(MERGED)?, upper, lower, mounts }, kept))
}

fn attachment(shared: &SharedMount) -> io::Result<Attachment> {
    let source = rustix::fs::open(&shared.place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // What is mounted below it on the host is in it already.
    Attachment::new(source, &shared.destination, shared.read_only, false)
}

fn root(path: impl AsRef<Path>) -> Result<Root, Status> {
    Root::open(path.as_ref()).map_err(|error| Status::from_error(ErrorKind::Internal, &error))
}

/// The layers without the container's changes, on a mount point of their own.
struct Lower {
    path: PathBuf,
    mounted: Option<MountedRootfs>,
}

impl Lower {
    fn mount(layers: &[LayerSource]) -> Result<Self, Status> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = PathBuf::from(format!("{LOWER}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut lower = Self { path: folder.join("joined"), mounted: None };
        fs::create_dir_all(&lower.path).map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
        let mounted = rootfs::mount_layers(layers, &folder.join("layers"), &lower.path);
        lower.mounted = Some(mounted.map_err(|error| Status::from_error(error.kind(), &error))?);
        Ok(lower)
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        drop(self.mounted.take());
        let folder = self.path.parent().unwrap_or(&self.path);
        if let Err(error) = fs::remove_dir(&self.path).and_then(|()| fs::remove_dir(folder)) {
            tracing::warn!("cannot remove {}: {error}", folder.display());
        }
    }
}

/// A small file for one operation; removed on drop.
struct Copy(PathBuf);

impl Copy {
    fn mount(text: &str, destination: &Path) -> io::Result<(Self, Attachment)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let copy = Self(PathBuf::from(format!("{COPY}-{}", COUNT.fetch_add(1, Ordering::Relaxed))));
        fs::write(&copy.0, text)?;
        fs::set_permissions(&copy.0, fs::Permissions::from_mode(0o644))?;
        let file = rustix::fs::open(&copy.0, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let mounted = Attachment::new(file, destination, false, false)?;
        Ok((copy, mounted))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// What an operation needs besides the files.
#[derive(Default)]
struct Kept {
    #[allow(dead_code, reason = "removes on drop")]
    copies: Vec<Copy>,
    #[allow(dead_code, reason = "unmounts on drop")]
    lower: Option<Lower>,
    #[allow(dead_code, reason = "thaws on drop")]
    frozen: Option<Frozen>,
}

/// The container's processes, standing still until this is dropped.
struct Frozen(Arc<dyn FilesOwner>);

impl Frozen {
    fn freeze(owner: &Arc<dyn FilesOwner>) -> Result<Option<Self>, Status> {
        Ok(owner.set_frozen(true)?.then(|| Self(Arc::clone(owner))))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.0.set_frozen(false) {
            tracing::error!("the container stays frozen: {error}");
        }
    }
}
