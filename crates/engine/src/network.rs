//! The engine's networks: their records, who is on them, and what the host has of them. It knows no container but by id.
//!
//! ```text
//!  record ── NetworkStore ──▶ bridge, firewall          made when first needed, taken away when the engine ends idle
//!  attach(container) ───────▶ addresses, ports, namespace, veths, routes, names ──▶ Endpoints (in the container's record)
//!  release(Endpoints) ──────▶ all of that gone: names and ports at once (part), links and addresses soon (clear)
//!  make_ready ──────────────▶ namespaces with a link on a network that was used of late, for the next attach
//!  adopt(Endpoints) ────────▶ what a dead engine had in its own memory: ports held, names served, addresses known
//! ```

mod attach;
pub mod endpoint;
mod files;
mod guest;
mod links;
mod live;
mod mend;
mod neighbours;
mod ports;
mod rates;
mod ready;
pub mod record;
mod release;
mod store;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use hostnet::{Firewall, Namespace};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, ApiResult, chain};
use endpoint::PublishedPort;
use ready::Ready;
use record::{Driver, Network, PREDEFINED, Subnet};
use release::Leaving;

pub use attach::AttachRequest;
pub use files::{FilesRequest, write_files};
pub use links::{Link, parse_link};
pub use ports::wanted_ports;
pub use rates::rates;
pub use ready::let_go;
pub use store::{Member, NetworkStore};

/// What the engine's memory has of a container's network while it runs.
#[derive(Default)]
struct Sandbox {
    /// Ends the proxies of published ports.
    publishing: CancellationToken,
    /// Ends the name server.
    names: Option<CancellationToken>,
    ports: Vec<PublishedPort>,
}

impl Sandbox {
    fn end(self) {
        self.publishing.cancel();
        self.names.iter().for_each(CancellationToken::cancel);
    }
}

/// The networks of one engine.
pub struct Networks {
    /// Records and members.
    pub store: Arc<NetworkStore>,
    /// Folder with one file per namespace.
    namespaces: PathBuf,
    /// Distinguishes this engine's links and rules from another's.
    tag: String,
    bip: Option<IpNet>,
    firewall: Arc<Firewall>,
    /// Networks whose bridge is there, by id.
    up: Mutex<HashSet<String>>,
    /// Held while a bridge is made or taken away, with the record that comes or goes with it.
    changing: Mutex<()>,
    sandboxes: Mutex<HashMap<String, Sandbox>>,
    guarding: Once,
    ready: Ready,
    leaving: Leaving,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error of the host's networks as a client sees it.
fn host_error(error: &hostnet::NetworkError) -> ApiError {
    ApiError::new(error.kind(), chain(error))
}

/// 64 hexadecimal digits.
///
/// # Errors
/// 500 when the kernel gives no randomness.
pub fn new_id() -> ApiResult<String> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ApiError::caused("cannot draw random bytes", &error))?;
    Ok(hex::encode(bytes))
}

impl Networks {
    /// Reads the records below the data root; touches nothing of the host's. `ready` is how many namespaces are to wait for
    /// containers.
    ///
    /// # Errors
    /// When the records' folder cannot be read, or the predefined networks cannot be kept.
    pub fn open(data_root: &Path, exec_root: &Path, bip: Option<IpNet>, ready: usize) -> anyhow::Result<Self> {
        let digest = hex::encode(Sha256::digest(data_root.as_os_str().as_encoded_bytes()));
        let is_default = data_root == Path::new("/var/lib/bulkhead");
        let tag = if is_default { String::new() } else { digest[..6].to_owned() };
        let table = if tag.is_empty() { "bulkhead".to_owned() } else { format!("bulkhead_{tag}") };
        let this = Self {
            store: Arc::new(NetworkStore::open(data_root.join("networks"))?),
            namespaces: exec_root.join("n"),
            tag,
            bip,
            firewall: Arc::new(Firewall::new(table)),
            up: Mutex::default(),
            changing: Mutex::default(),
            sandboxes: Mutex::default(),
            guarding: Once::new(),
            ready: Ready::new(ready),
            leaving: Leaving::default(),
        };
        this.define().map_err(|error| anyhow::anyhow!(error.message))?;
        Ok(this)
    }

    /// Makes the records of the predefined networks that are missing, and gives the default bridge another subnet if `--bip`
    /// says so.
    fn define(&self) -> ApiResult<()> {
        for (name, driver) in PREDEFINED {
            let known = self.store.find(name).ok().filter(|known| known.name == name);
            match known {
                None => {
                    let mut network = Network::new(new_id()?, name, driver);
                    if driver == Driver::Bridge {
                        self.furnish_default(&mut network)?;
                    }
                    self.store.add(network)?;
                }
                Some(known) if driver == Driver::Bridge && self.is_outdated(&known) => {
                    let mut network = (*known).clone();
                    self.furnish_default(&mut network)?;
                    self.store.replace(network)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn is_outdated(&self, known: &Network) -> bool {
        let subnet = known.subnets.first();
        match (self.bip, subnet) {
            (Some(bip), Some(subnet)) => subnet.gateway != bip.addr() || subnet.subnet != bip.trunc(),
            (_, None) => true,
            (None, Some(_)) => false,
        }
    }

    fn furnish_default(&self, network: &mut Network) -> ApiResult<()> {
        let subnet = match self.bip {
            Some(bip) => Subnet { subnet: bip.trunc(), range: None, gateway: bip.addr(), reserved: Default::default() },
            None => self.free_subnet()?,
        };
        network.bridge = if self.tag.is_empty() { "bh0".into() } else { format!("bh0-{}", self.tag) };
        network.subnets = vec![subnet];
        network.options = [
            ("com.docker.network.bridge.default_bridge", "true"),
            ("com.docker.network.bridge.enable_icc", "true"),
            ("com.docker.network.bridge.enable_ip_masquerade", "true"),
            ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
            (record::BRIDGE_NAME, network.bridge.as_str()),
            ("com.docker.network.driver.mtu", "1500"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        Ok(())
    }

    /// A subnet that neither a network of ours nor a route of the host's touches.
    ///
    /// # Errors
    /// 500, in dockerd's words, when all default pools are in use.
    pub fn free_subnet(&self) -> ApiResult<Subnet> {
        let mut used = hostnet::host_networks();
        used.extend(self.store.all().iter().flat_map(|network| network.subnets.iter().map(|subnet| subnet.subnet)));
        let subnet = hostnet::free_subnet(&used).map(IpNet::V4).ok_or_else(|| {
            ApiError::internal("could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network")
        })?;
        let gateway = hostnet::first_address(subnet);
        Ok(Subnet { subnet, range: None, gateway, reserved: Default::default() })
    }

    /// A subnet for IPv6, unique to this engine and network. Source: RFC 4193.
    #[must_use]
    pub fn free_subnet6(&self, network_id: &str) -> Subnet {
        let digest = Sha256::digest(format!("{}{network_id}", self.tag));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&digest[..8]);
        bytes[0] = 0xfd;
        let subnet = IpNet::V6(ipnet::Ipv6Net::new_assert(bytes.into(), 64));
        Subnet { subnet, range: None, gateway: hostnet::first_address(subnet), reserved: Default::default() }
    }

    /// Name of a bridge that nobody has named.
    #[must_use]
    pub fn bridge_name(network_id: &str) -> String {
        format!("bh-{}", network_id.get(..12).unwrap_or(network_id))
    }

    /// The mark on this engine's links.
    fn alias(&self) -> String {
        format!("bulkhead:{}", self.tag)
    }

    /// The file on which a container's namespace is bound.
    #[must_use]
    pub fn namespace_path(&self, container: &str) -> PathBuf {
        self.namespaces.join(container.get(..12).unwrap_or(container))
    }

    /// Makes a network's bridge and rules, unless they are there.
    ///
    /// When: in a blocking thread.
    ///
    /// # Errors
    /// 409 for a bridge's name that is somebody else's, 500 for what the host refuses.
    pub fn ensure(&self, network: &Network) -> ApiResult<Arc<Network>> {
        let known = self.store.find(&network.id)?;
        if known.driver != Driver::Bridge {
            return Ok(known);
        }
        if lock(&self.up).contains(&known.id) {
            if hostnet::has_link(&known.bridge) {
                return Ok(known);
            }
            return self.bring_back(&known);
        }
        let _changing = lock(&self.changing);
        self.bring_up(network)
    }

    /// Keeps a new network and makes its bridge and rules; nobody finds it before it is complete, to take it away again.
    ///
    /// When: in a blocking thread.
    ///
    /// # Errors
    /// As [`NetworkStore::add`] and [`Networks::ensure`]; there is no such network then.
    pub fn create(&self, network: Network) -> ApiResult<Arc<Network>> {
        let _changing = lock(&self.changing);
        let network = self.store.add(network)?;
        self.bring_up(&network).inspect_err(|_| {
            if let Err(left) = self.store.remove(&network).and_then(|()| self.take_down(&network)) {
                tracing::warn!("a network that was not finished is left: {left}");
            }
        })
    }

    /// Removes a network that nobody is on, with its bridge and rules.
    ///
    /// When: in a blocking thread.
    ///
    /// # Errors
    /// 403 while a container is on it, 404 when somebody else has just removed it, 500 for what the host refuses.
    pub fn discard(&self, network: &Network) -> ApiResult<()> {
        let _changing = lock(&self.changing);
        self.store.find(&network.id)?;
        self.store.remove(network)?;
        self.take_down(network)
    }

    /// When: `changing` is held.
    fn bring_up(&self, network: &Network) -> ApiResult<Arc<Network>> {
        let known = self.store.find(&network.id)?;
        if known.driver != Driver::Bridge || lock(&self.up).contains(&known.id) {
            return Ok(known);
        }
        let _alone = hostnet::HostLock::acquire().map_err(|error| host_error(&error))?;
        let known = self.avoid_conflict(known)?;
        hostnet::forward_packets(known.ipv6).map_err(|error| host_error(&error))?;
        let is_new = hostnet::ensure_bridge(&known.bridge_spec(&self.alias())).map_err(|error| host_error(&error))?;
        self.firewall.add_network(known.rules()).map_err(|error| host_error(&error)).inspect_err(|_| {
            if is_new && let Err(left) = hostnet::delete_link(&known.bridge) {
                tracing::warn!("a bridge without rules is left: {}", chain(&left));
            }
        })?;
        lock(&self.up).insert(known.id.clone());
        self.guard();
        Ok(known)
    }

    /// A subnet that the engine chose, and that the host came to use otherwise before there was a bridge, is changed.
    fn avoid_conflict(&self, network: Arc<Network>) -> ApiResult<Arc<Network>> {
        let chosen = !network.subnets_given && (!network.is_predefined() || self.bip.is_none());
        let is_there = Path::new("/sys/class/net").join(&network.bridge).exists();
        if !chosen || is_there || !self.store.members(&network.id).is_empty() {
            return Ok(network);
        }
        let routes = hostnet::host_networks();
        let clashes = |subnet: &Subnet| routes.iter().any(|route| hostnet::overlaps(*route, subnet.subnet));
        if !network.subnets.iter().any(clashes) {
            return Ok(network);
        }
        let mut moved = (*network).clone();
        moved.subnets.retain(|subnet| !clashes(subnet) || matches!(subnet.subnet, IpNet::V6(_)));
        if moved.subnets.iter().all(|subnet| matches!(subnet.subnet, IpNet::V6(_))) {
            moved.subnets.insert(0, self.free_subnet()?);
        }
        tracing::info!(network = network.name, "its subnet is in use on this host by now; it has another one");
        self.store.replace(moved)
    }

    fn guard(&self) {
        self.guarding.call_once(|| {
            if let Err(error) = self.firewall.guard() {
                tracing::warn!("rules that somebody flushes do not come back: {}", chain(&error));
            }
        });
    }

    /// Takes a network's bridge and rules away. Its record stays. When: `changing` is held, or no request is served.
    ///
    /// # Errors
    /// 500 for what the host refuses.
    fn take_down(&self, network: &Network) -> ApiResult<()> {
        if network.driver != Driver::Bridge {
            return Ok(());
        }
        let was_up = lock(&self.up).remove(&network.id);
        // Nothing is made for it any more by now.
        self.ready.forget(network);
        // Each of them goes, whatever becomes of the others.
        let rules = if was_up { self.firewall.remove_network(&network.bridge) } else { Ok(()) };
        rules.and(self.take_bridge(&network.bridge)).map_err(|error| host_error(&error))
    }

    /// Deletes a bridge of ours with the links on it. Nobody is on the network: they are of a utility VM that stands by.
    fn take_bridge(&self, bridge: &str) -> Result<(), hostnet::NetworkError> {
        for link in hostnet::links_on(bridge)?.iter().filter(|link| ready::is_host_link(link)) {
            hostnet::unplug(link)?;
        }
        // A bridge that somebody else made stays.
        if hostnet::links_with_alias(&self.alias())?.iter().any(|link| link == bridge) {
            hostnet::delete_link(bridge)?;
        }
        Ok(())
    }

    /// Clears away what an engine that was killed left, and brings back what running containers need. `alive` are the
    /// containers that run.
    ///
    /// When: in a blocking thread, before any request, after the running containers were adopted.
    pub fn settle(&self, alive: &HashSet<String>) {
        self.clear_namespaces(alive);
        let used: Vec<Arc<Network>> =
            self.store.all().into_iter().filter(|network| !self.store.members(&network.id).is_empty()).collect();
        for network in used.iter().filter(|network| network.driver == Driver::Bridge) {
            if let Err(error) = self.ensure(network) {
                tracing::error!(network = network.name, "cannot bring a network back: {error}");
            }
        }
        if used.iter().all(|network| network.driver != Driver::Bridge) {
            self.unload();
        }
        for network in self.store.all().iter().filter(|network| network.driver == Driver::Bridge) {
            if let Err(error) = hostnet::delete_unmarked_bridge(&network.bridge_spec(&self.alias())) {
                tracing::warn!(network = network.name, "a bridge is left of an earlier engine: {}", chain(&error));
            }
        }
        let known: HashSet<String> = used.iter().map(|network| network.bridge.clone()).collect();
        match hostnet::links_with_alias(&self.alias()) {
            Ok(links) => links.iter().filter(|link| !known.contains(*link)).for_each(|link| {
                if let Err(error) = hostnet::delete_link(link) {
                    tracing::warn!(link, "cannot remove a link that an earlier engine left: {}", chain(&error));
                }
            }),
            Err(error) => tracing::warn!("cannot look for links that an earlier engine left: {}", chain(&error)),
        }
    }

    fn clear_namespaces(&self, alive: &HashSet<String>) {
        let kept: HashSet<PathBuf> = alive.iter().map(|id| self.namespace_path(id)).collect();
        let Ok(entries) = std::fs::read_dir(&self.namespaces) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path)) {
            if let Err(error) = Namespace::remove(&path) {
                tracing::warn!("cannot remove a namespace that an earlier engine left: {}", chain(&error));
            }
        }
    }

    /// Takes everything of the host's away if no container needs it: an engine that ends idle leaves nothing.
    ///
    /// When: in a blocking thread; no request is served any more.
    pub fn retire(&self) {
        self.ready.close();
        self.leaving.wait_for_all();
        if !lock(&self.sandboxes).is_empty() || !self.guarding.is_completed() {
            return;
        }
        for network in self.store.all() {
            if lock(&self.up).contains(&network.id)
                && let Err(error) = self.take_down(&network)
            {
                tracing::warn!(network = network.name, "cannot take a network down: {error}");
            }
        }
        self.unload();
    }

    fn unload(&self) {
        // Where there is no nft, there are no rules.
        if let Err(error) = self.firewall.unload() {
            tracing::debug!("no rules were taken away: {}", chain(&error));
        }
    }
}
