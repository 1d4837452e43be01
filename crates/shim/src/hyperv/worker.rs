//! A utility VM with what it has on the host: its cgroup, and the network namespace that was taken over for it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proto::gcs::INIT_PROCESS;
use proto::network::SandboxNetwork;
use proto::{ErrorKind, Status};
use uvm::{StartRequest, UtilityVm, WaitingVmm};

use crate::network;

/// The VM and its cgroup on the host.
pub struct Worker {
    /// It is personalized.
    pub vm: UtilityVm,
    /// On the host.
    pub cgroup: String,
    /// Somebody's namespace that was taken over.
    namespace: Option<PathBuf>,
    destroyed: AtomicBool,
    /// Number of the next process in the guest.
    next_process: AtomicU32,
}

impl Worker {
    /// Shape: `namespace` is given back with the VM.
    pub fn of(vm: UtilityVm, cgroup: String, namespace: Option<PathBuf>) -> Self {
        let next_process = AtomicU32::new(INIT_PROCESS + 1);
        Self { vm, cgroup, namespace, destroyed: AtomicBool::new(false), next_process }
    }

    /// A number for one more process. [`INIT_PROCESS`] is nobody's but the first process's of a VM's one container.
    pub fn next_process(&self) -> u32 {
        self.next_process.fetch_add(1, Ordering::SeqCst)
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.vm.report().vmm_pids.first().copied().unwrap_or(0)
    }

    /// Its namespace is somebody else's, who may use it again at once.
    pub fn is_on_foreign_network(&self) -> bool {
        self.namespace.is_some()
    }

    /// True when nothing can be said to the guest any more.
    pub fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::SeqCst)
    }

    /// Kills the VM and removes its cgroup. May be repeated.
    ///
    /// # Errors
    /// What of it cannot be given back.
    pub async fn destroy(&self) -> Result<(), Status> {
        if !self.destroyed.swap(true, Ordering::SeqCst) {
            self.vm.kill();
            // Killed, it cannot stay; this waits only until the kernel has reaped it.
            self.vm.wait().await;
        }
        let given_back = give_back(self.namespace.clone()).await;
        remove_cgroup(self.cgroup.clone()).await.and(given_back)
    }
}

/// Gives back a namespace that was taken over.
///
/// # Errors
/// What the kernel says.
pub async fn give_back(namespace: Option<PathBuf>) -> Result<(), Status> {
    match namespace {
        Some(namespace) => network::give_back(namespace).await,
        None => Ok(()),
    }
}

/// Removes a cgroup of the host with all in it.
///
/// # Errors
/// What does not go.
pub async fn remove_cgroup(path: String) -> Result<(), Status> {
    let removed = tokio::task::spawn_blocking(move || {
        container::remove_cgroup(path.as_ref()).map_err(|error| Status::from_error(error.kind(), &error))
    });
    removed.await.unwrap_or_else(|error| Err(Status::new(ErrorKind::Internal, error.to_string())))
}

/// Removes the folder that a VM's logs are in; what cannot be removed is told in the log.
pub fn remove_folder(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %folder.display(), "left behind");
        }
        _ => {}
    }
}

/// Puts a VM on its network, if it has one.
///
/// # Errors
/// What the kernel says.
pub async fn connect(vm: &UtilityVm, network: Option<&SandboxNetwork>) -> Result<(), Status> {
    match network {
        Some(network) => network::connect(vm, network).await,
        None => Ok(()),
    }
}

/// Starts a utility VM, in the process that waits if that is what it needs. Nothing of it stays when that fails.
///
/// # Errors
/// What the VM says.
pub async fn start(
    waiting: Option<WaitingVmm>,
    request: StartRequest<'_>,
    cgroup: &str,
    namespace: Option<&PathBuf>,
) -> Result<Worker, Status> {
    match UtilityVm::start_in(waiting, request).await {
        Ok(vm) => Ok(Worker::of(vm, cgroup.to_owned(), namespace.cloned())),
        Err(error) => {
            if let Err(left) = give_back(namespace.cloned()).await {
                tracing::error!(%left, "a network namespace stays taken over");
            }
            if let Err(left) = remove_cgroup(cgroup.to_owned()).await {
                tracing::error!(%left, "a cgroup is left behind");
            }
            Err(Status::from_error(error.kind(), &error))
        }
    }
}
