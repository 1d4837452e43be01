//! The network of a hyperv container: its utility VM's taps, tied to the ends that the engine has made in the container's
//! namespace. What the guest may send is the engine's to say, by rules in that namespace.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;

use hostnet::{LoopbackListener, Namespace, NetworkError};
use proto::gcs::wire::{ConfigureNetworkRequest, NameFile};
use proto::network::{NETWORK_SLOTS, NetworkUpdate, SandboxNetwork};
use proto::{ErrorKind, Status};
use uvm::UtilityVm;

fn status(error: &NetworkError) -> Status {
    Status::from_error(error.kind(), error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(move || work().map_err(|error| status(&error))).await;
    done.unwrap_or_else(|error| Err(Status::new(ErrorKind::Internal, error.to_string())))
}

/// What the links have that are in somebody's namespace, CNI's for instance, tied to bridges for a VM; none without links.
///
/// # Errors
/// `NotImplemented` for what a guest cannot have; what the kernel says.
pub async fn take_over(namespace: PathBuf) -> Result<Option<SandboxNetwork>, Status> {
    blocking(move || hostnet::take_over(&Namespace::at(namespace))).await
}

/// Makes a namespace what it was before [`take_over`]. May be repeated.
///
/// # Errors
/// What the kernel says.
pub async fn give_back(namespace: PathBuf) -> Result<(), Status> {
    blocking(move || hostnet::give_back(&Namespace::at(namespace))).await
}

/// Listens at a namespace's loopback, at all ports.
///
/// # Errors
/// What the kernel says.
pub async fn listen_at_loopback(namespace: PathBuf) -> Result<LoopbackListener, Status> {
    blocking(move || LoopbackListener::open(&Namespace::at(namespace))).await
}

/// Puts a VM on its networks. When: it is personalized; its guest knows its network or learns of it next.
///
/// # Errors
/// What the kernel says.
pub async fn connect(vm: &UtilityVm, network: &SandboxNetwork) -> Result<(), Status> {
    for interface in &network.interfaces {
        let limited = vm.limit_network(interface.slot, interface.rates).await;
        limited.map_err(|error| Status::from_error(error.kind(), &error))?;
    }
    let from = vm.network_slots().namespace().try_clone_to_owned();
    let from = from.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
    let network = network.clone();
    blocking(move || {
        let namespace = Namespace::at(network.namespace);
        let connect = |interface| hostnet::connect_tap(&namespace, interface, Some(from.as_fd()));
        network.interfaces.iter().try_for_each(connect)
    })
    .await
}

/// Takes a VM off all networks but these.
async fn disconnect_others(network: &SandboxNetwork) -> Result<(), Status> {
    let network = network.clone();
    blocking(move || {
        let namespace = Namespace::at(network.namespace);
        let used: BTreeSet<u32> = network.interfaces.iter().map(|interface| interface.slot).collect();
        let mut others = (0..NETWORK_SLOTS).filter(|slot| !used.contains(slot));
        others.try_for_each(|slot| hostnet::disconnect_tap(&namespace, slot))
    })
    .await
}

/// Ties the tap of slot 0 to what waits for it in the namespace in which the VM's taps were made. It stays off.
///
/// # Errors
/// What the kernel says.
pub async fn tie(namespace: PathBuf) -> Result<(), Status> {
    blocking(move || hostnet::tie_tap(&Namespace::at(namespace), 0)).await
}

/// Makes the network of a container that runs what it says, on the host and in the guest.
///
/// # Errors
/// What kernel or guest say; the VM is then off the networks that it was not on before.
pub async fn change(vm: &UtilityVm, before: Option<&SandboxNetwork>, update: &NetworkUpdate) -> Result<(), Status> {
    disconnect_others(&update.network).await?;
    connect(vm, &update.network).await?;
    let mut request = ConfigureNetworkRequest::new();
    request.network = Some(update.network.for_guest()).into();
    let file = |(name, text): (&String, &String)| NameFile {
        name: name.clone(),
        text: text.clone().into_bytes(),
        ..NameFile::default()
    };
    request.files = update.files.iter().map(file).collect();
    let told = vm.guest().configure_network(&request).await.map(drop).map_err(|error| error.to_status());
    if let (Err(_), Some(before)) = (&told, before)
        && let Err(left) = async { disconnect_others(before).await.and(connect(vm, before).await) }.await
    {
        tracing::warn!(%left, "a utility VM stays on a network");
    }
    told
}
