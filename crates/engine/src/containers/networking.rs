//! What the networks have to do with a container's life: put on before a start, taken off after the end, taken up again by
//! the next engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerConfig, HostConfig};
use hostnet::{LinkWatch, ReadySandbox};
use proto::Isolation;

use super::links;
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::network::AttachRequest;
use crate::network::endpoint::Endpoints;

/// A start's client is to have its answer, and a short container its end, before something is made for the next one.
const AFTER_START: Duration = Duration::from_millis(50);

/// Where a container's network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The runtime makes a namespace with a loopback device.
    Own,
    /// The host's.
    Host,
    /// A namespace that is there.
    At(PathBuf),
}

/// A container's place and what else it takes from whoever it shares that with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networking {
    /// Its namespace.
    pub place: Place,
    /// Folder with `hosts`, `hostname` and `resolv.conf`.
    pub files: PathBuf,
    /// Its host name.
    pub hostname: String,
}

/// Puts a container on its networks.
///
/// When: in a blocking thread; its lifecycle is held; it does not run.
///
/// # Errors
/// As [`crate::network::Networks::attach`]; 409 when the container whose network it is to share does not run.
pub fn attach(
    engine: &Engine,
    container: &Container,
    (config, host): (&ContainerConfig, &HostConfig),
    waiting: &mut Option<ReadySandbox>,
) -> ApiResult<()> {
    if let Some(other) = shared_with(host) {
        let other = engine.containers.find(other)?;
        if other.id == container.id {
            return Err(ApiError::invalid("cannot join own network"));
        }
        return pid_of(&other).map(drop);
    }
    let name = container.name();
    let request = AttachRequest {
        id: container.id.as_str(),
        name: &name,
        config,
        host,
        dir: &container.dir,
        isolation: container.isolation,
    };
    let endpoints = container.record().network.clone();
    let attached = engine.networks.attach(&request, endpoints, waiting);
    let attached = attached.map_err(|error| error.context("failed to set up container networking"))?;
    container.record().network = attached;
    links::write_hosts(engine, container)?;
    links::tell_owners(engine, container);
    Ok(())
}

/// The container of `--network container:NAME`.
fn shared_with(host: &HostConfig) -> Option<&str> {
    host.network_mode.as_deref()?.strip_prefix("container:")
}

fn pid_of(other: &Container) -> ApiResult<u32> {
    if other.isolation == Isolation::Hyperv {
        return Err(ApiError::not_implemented(format!(
            "the network of container {} cannot be shared: it is in a utility VM of its own",
            other.id
        )));
    }
    match &other.record().phase {
        Phase::Running { pid, .. } => Ok(*pid),
        _ => Err(ApiError::conflict(format!("cannot join network of a non running container: {}", other.id))),
    }
}

/// Where the network of a container is that was attached, or runs.
///
/// # Errors
/// 404 and 409 when it is to share a network that is not there.
pub fn networking(engine: &Engine, container: &Container) -> ApiResult<Networking> {
    let (config, host) = (container.config()?, container.host()?);
    let hostname = |config: &ContainerConfig| config.hostname.clone().unwrap_or_default();
    let own = |place| Networking { place, files: container.dir.clone(), hostname: hostname(&config) };
    if let Some(other) = shared_with(&host) {
        let other = engine.containers.find(other)?;
        let is_host = other.record().host_text("NetworkMode") == "host";
        let place = if is_host { Place::Host } else { Place::At(format!("/proc/{}/ns/net", pid_of(&other)?).into()) };
        return Ok(Networking { place, files: other.dir.clone(), hostname: hostname(&other.config()?) });
    }
    if host.network_mode.as_deref() == Some("host") {
        return Ok(own(Place::Host));
    }
    let sandbox = container.record().network.sandbox;
    Ok(own(if sandbox { Place::At(engine.networks.namespace_path(container.id.as_str())) } else { Place::Own }))
}

/// Tells everybody that a container has been put on its networks.
pub fn announce(engine: &Engine, container: &Container, action: &'static str) {
    let endpoints = container.record().network.clone();
    for endpoint in endpoints.all.values().filter(|endpoint| endpoint.live.is_some()) {
        if let Ok(network) = engine.networks.store.find(&endpoint.network_id) {
            container.emit_network(&engine.events, action, &network);
        }
    }
}

/// Takes a container that has ended off its networks.
pub async fn release(engine: &Arc<Engine>, container: &Arc<Container>) {
    let endpoints = container.record().network.clone();
    if endpoints.all.values().all(|endpoint| endpoint.live.is_none()) && !endpoints.sandbox {
        return;
    }
    announce(engine, container, "disconnect");
    let (networks, id) = (Arc::clone(engine), container.id.clone());
    match tokio::task::spawn_blocking(move || networks.networks.part(id.as_str(), &endpoints)).await {
        Ok(remains) => {
            // Nobody waits for the kernel, but who wants the same address, or the same container again.
            let engine = Arc::clone(engine);
            tokio::task::spawn_blocking(move || engine.networks.clear(remains));
        }
        Err(error) => tracing::error!(id = %container.id, %error, "cannot take a container off its networks"),
    }
    container.record().network.rest();
}

/// Lets network namespaces be made for the next starts, when this one is over.
pub fn prepare_next(engine: &Arc<Engine>) {
    let engine = Arc::clone(engine);
    tokio::spawn(async move {
        tokio::time::sleep(AFTER_START).await;
        let made = tokio::task::spawn_blocking(move || engine.networks.make_ready()).await;
        if let Err(error) = made {
            tracing::error!(%error, "no network namespaces are made beforehand");
        }
    });
}

/// Brings bridges back that others take away, in a thread that ends with the engine.
pub fn mend_for_good(engine: &Arc<Engine>) {
    let engine = Arc::downgrade(engine);
    let watch = move || -> Result<(), hostnet::NetworkError> {
        let watch = LinkWatch::new()?;
        loop {
            watch.wait()?;
            let Some(engine) = engine.upgrade() else { return Ok(()) };
            engine.networks.mend();
        }
    };
    let told = move || {
        if let Err(error) = watch() {
            tracing::warn!("bridges that somebody takes away come back at the next start only: {}", chain(&error));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("bridges".into()).spawn(told) {
        tracing::warn!(%error, "bridges that somebody takes away come back at the next start only");
    }
}

/// Takes up the networks of a container that an earlier engine started.
pub async fn adopt(engine: &Arc<Engine>, container: &Arc<Container>) {
    let endpoints: Endpoints = container.record().network.clone();
    let (engine, container) = (Arc::clone(engine), Arc::clone(container));
    let adopting = tokio::task::spawn_blocking(move || {
        let (config, host, name) = (container.config()?, container.host()?, container.name());
        let id = container.id.as_str();
        let (dir, isolation) = (container.dir.as_path(), container.isolation);
        let request = AttachRequest { id, name: &name, config: &config, host: &host, dir, isolation };
        engine.networks.adopt(&request, &endpoints);
        Ok::<(), ApiError>(())
    });
    match adopting.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("cannot take up a container's networks: {error}"),
        Err(error) => tracing::error!(%error, "cannot take up a container's networks"),
    }
}
