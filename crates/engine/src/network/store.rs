//! Every network of an engine, by id and name, and who has which address on it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostnet::{Pool, PoolError};
use ipnet::IpNet;
use proto::ErrorKind;

use super::endpoint::LiveEndpoint;
use super::record::{Driver, Network, NetworkRecordError};
use crate::error::{ApiError, ApiResult, chain};

/// Who is on a network.
#[derive(Debug, Clone)]
pub struct Member {
    /// The container's name.
    pub name: String,
    /// What it has there.
    pub endpoint: LiveEndpoint,
}

struct Entry {
    network: Arc<Network>,
    /// One for each subnet.
    pools: Vec<Pool>,
    /// By the container's id.
    members: BTreeMap<String, Member>,
}

/// The networks. Shape: an id, a name, pools and members belong together at every moment.
pub struct NetworkStore {
    folder: PathBuf,
    entries: Mutex<HashMap<String, Entry>>,
}

impl Entry {
    fn new(network: Network) -> Self {
        let pool = |subnet: &super::record::Subnet| {
            let reserved = subnet.reserved.values().copied().chain([subnet.gateway]);
            Pool::new(subnet.subnet, subnet.range, reserved)
        };
        Self { pools: network.subnets.iter().map(pool).collect(), network: Arc::new(network), members: BTreeMap::new() }
    }
}

impl NetworkStore {
    /// Reads the records in a folder, which is made if needed.
    ///
    /// # Errors
    /// When the folder cannot be read; a record that cannot be read is told of and left alone.
    pub fn open(folder: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let mut entries = HashMap::new();
        for file in std::fs::read_dir(&folder)? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match Network::read(&path) {
                Ok(network) => {
                    entries.insert(network.id.clone(), Entry::new(network));
                }
                Err(NetworkRecordError::Newer(format)) => {
                    tracing::error!(path = %path.display(), format, "a newer engine made this network; it is left alone");
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), error = chain(&error), "cannot read a network; it is left alone");
                }
            }
        }
        Ok(Self { folder, entries: Mutex::new(entries) })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &str) -> PathBuf {
        Path::new(&self.folder).join(format!("{id}.json"))
    }

    /// Adds a network, whose name must be free.
    ///
    /// # Errors
    /// 409 for a name that is taken, 403 for a subnet that is, 500 when the record cannot be written.
    pub fn add(&self, network: Network) -> ApiResult<Arc<Network>> {
        let mut entries = self.entries();
        if entries.values().any(|entry| entry.network.name == network.name) {
            return Err(ApiError::conflict(format!("network with name {} already exists", network.name)));
        }
        let used = entries.values().flat_map(|entry| &entry.network.subnets);
        let mut pairs = used.flat_map(|used| network.subnets.iter().map(move |new| (used.subnet, new.subnet)));
        if pairs.any(|(a, b)| hostnet::overlaps(a, b)) {
            return Err(overlap());
        }
        let bridge = &network.bridge;
        if network.driver == Driver::Bridge && entries.values().any(|entry| entry.network.bridge == *bridge) {
            return Err(ApiError::new(
                ErrorKind::PermissionDenied,
                format!("network with bridge name {bridge} already exists"),
            ));
        }
        self.write(&network)?;
        let entry = Entry::new(network);
        let network = Arc::clone(&entry.network);
        entries.insert(network.id.clone(), entry);
        Ok(network)
    }

    /// Puts another record in a network's place. When: nobody is on it.
    ///
    /// # Errors
    /// 500 when the record cannot be written.
    pub fn replace(&self, network: Network) -> ApiResult<Arc<Network>> {
        let mut entries = self.entries();
        self.write(&network)?;
        let entry = Entry::new(network);
        let network = Arc::clone(&entry.network);
        entries.insert(network.id.clone(), entry);
        Ok(network)
    }

    fn write(&self, network: &Network) -> ApiResult<()> {
        network
            .write(&self.path(&network.id))
            .map_err(|error| ApiError::caused("cannot write the network's record", &error))
    }

    /// Removes a network that nobody is on.
    ///
    /// # Errors
    /// 403 while somebody is, 500 when its record cannot be removed.
    pub fn remove(&self, network: &Network) -> ApiResult<()> {
        let mut entries = self.entries();
        if entries.get(&network.id).is_some_and(|entry| !entry.members.is_empty()) {
            return Err(ApiError::new(
                ErrorKind::PermissionDenied,
                format!(
                    "error while removing network: network {} id {} has active endpoints",
                    network.name, network.id
                ),
            ));
        }
        match std::fs::remove_file(self.path(&network.id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ApiError::caused("cannot remove the network's record", &error))
            }
            _ => {
                entries.remove(&network.id);
                Ok(())
            }
        }
    }

    /// Finds by full id, by name, or by the beginning of one id. Source: moby `daemon.FindNetwork`.
    ///
    /// # Errors
    /// 404 when there is none, 400 when the beginning fits several.
    pub fn find(&self, reference: &str) -> ApiResult<Arc<Network>> {
        let entries = self.entries();
        let name = if reference == "default" { "bridge" } else { reference };
        if let Some(entry) = entries.get(reference) {
            return Ok(Arc::clone(&entry.network));
        }
        if let Some(entry) = entries.values().find(|entry| entry.network.name == name) {
            return Ok(Arc::clone(&entry.network));
        }
        let mut found = entries.values().filter(|entry| !name.is_empty() && entry.network.id.starts_with(name));
        match (found.next(), found.next()) {
            (Some(entry), None) => Ok(Arc::clone(&entry.network)),
            (None, _) => Err(ApiError::not_found(format!("network {reference} not found"))),
            (Some(_), Some(_)) => {
                Err(ApiError::invalid(format!("network {reference} is ambiguous (2 matches found based on ID prefix)")))
            }
        }
    }

    /// Every network, by name.
    pub fn all(&self) -> Vec<Arc<Network>> {
        let mut all: Vec<_> = self.entries().values().map(|entry| Arc::clone(&entry.network)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Who is on a network, by the container's id.
    pub fn members(&self, network_id: &str) -> BTreeMap<String, Member> {
        self.entries().get(network_id).map(|entry| entry.members.clone()).unwrap_or_default()
    }

    /// Notes that a container is on a network.
    pub fn join(&self, network_id: &str, container: &str, member: Member) {
        if let Some(entry) = self.entries().get_mut(network_id) {
            entry.members.insert(container.to_owned(), member);
        }
    }

    /// Notes that a container has left a network, and gives its addresses back.
    pub fn leave(&self, network_id: &str, container: &str) {
        let member = self.entries().get_mut(network_id).and_then(|entry| entry.members.remove(container));
        if let Some(member) = member {
            self.give_back(network_id, member.endpoint.addresses());
        }
    }

    /// Notes that a container has left a network, and keeps its addresses until [`NetworkStore::give_back`]. False if it was
    /// not on it.
    pub fn part(&self, network_id: &str, container: &str) -> bool {
        self.entries().get_mut(network_id).is_some_and(|entry| entry.members.remove(container).is_some())
    }

    /// Gives addresses back.
    pub fn give_back(&self, network_id: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        if let Some(entry) = self.entries().get_mut(network_id) {
            for address in addresses {
                entry.pools.iter_mut().for_each(|pool| pool.release(address));
            }
        }
    }

    /// A container has another name now.
    pub fn rename(&self, container: &str, old: &str, new: &str) {
        let new_name = new.to_lowercase();
        for entry in self.entries().values_mut() {
            let Some(member) = entry.members.get_mut(container) else { continue };
            new.clone_into(&mut member.name);
            let names = &mut member.endpoint.names;
            names.iter_mut().filter(|name| **name == old.to_lowercase()).for_each(|name| name.clone_from(&new_name));
        }
    }

    /// Takes an address of each family that a network has: the ones that are asked for, or any.
    ///
    /// # Errors
    /// 403 for an address that is taken, 500 in dockerd's words for one outside of every subnet, or when none is left.
    pub fn allocate(&self, network_id: &str, asked: &[IpAddr]) -> ApiResult<Vec<IpNet>> {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(network_id) else {
            return Err(ApiError::not_found(format!("network {network_id} not found")));
        };
        let mut taken: Vec<IpNet> = Vec::new();
        for is_v4 in [true, false] {
            let wanted = asked.iter().copied().find(|address| address.is_ipv4() == is_v4);
            let of_family = |pool: &Pool| matches!(pool.subnet(), IpNet::V4(_)) == is_v4;
            // As dockerd: on a network without IPv6 nobody gets an address of it, asked for or not.
            if !entry.pools.iter().any(of_family) {
                continue;
            }
            let mut pools = entry.pools.iter_mut().filter(|pool| of_family(pool));
            let outcome = match wanted {
                Some(address) => match pools.find(|pool| pool.subnet().contains(&address)) {
                    Some(pool) => pool.take(address).map(|()| Some((address, pool.subnet()))),
                    None => {
                        give_back(entry, &taken);
                        return Err(ApiError::internal(format!(
                            "Invalid address {address}: It does not belong to any of this network's subnets"
                        )));
                    }
                },
                None => pools.next().map(|pool| pool.take_any().map(|address| (address, pool.subnet()))).transpose(),
            };
            match outcome {
                Ok(found) => {
                    taken.extend(found.and_then(|(address, subnet)| IpNet::new(address, subnet.prefix_len()).ok()))
                }
                Err(error) => {
                    give_back(entry, &taken);
                    return Err(pool_error(&error, &entry.network, is_v4));
                }
            }
        }
        Ok(taken)
    }

    /// Takes the addresses of a container that runs already.
    pub fn take_known(&self, network_id: &str, addresses: impl Iterator<Item = IpAddr>) {
        if let Some(entry) = self.entries().get_mut(network_id) {
            for address in addresses {
                let found = entry.pools.iter_mut().find(|pool| pool.subnet().contains(&address));
                if found.is_some_and(|pool| pool.take(address).is_err()) {
                    tracing::warn!(%address, network = entry.network.name, "two containers have the same address");
                }
            }
        }
    }
}

fn give_back(entry: &mut Entry, taken: &[IpNet]) {
    for address in taken {
        entry.pools.iter_mut().for_each(|pool| pool.release(address.addr()));
    }
}

/// Source: moby `ipamapi.ErrPoolOverlap`.
fn overlap() -> ApiError {
    ApiError::new(ErrorKind::PermissionDenied, "Pool overlaps with other one on this address space")
}

/// Source: moby `libnetwork/endpoint.go`, `assignAddressVersion`.
fn pool_error(error: &PoolError, network: &Network, is_v4: bool) -> ApiError {
    match error {
        PoolError::InUse => ApiError::new(ErrorKind::PermissionDenied, error.to_string()),
        PoolError::OutOfRange => ApiError::internal(error.to_string()),
        PoolError::Exhausted => ApiError::internal(format!(
            "no available IPv{} addresses on this network's address pools: {} ({})",
            if is_v4 { 4 } else { 6 },
            network.name,
            network.id
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Subnet;
    use super::*;

    fn network(id: char, name: &str, subnet: &str) -> Network {
        let subnet: IpNet = subnet.parse().unwrap();
        let gateway = hostnet::first_address(subnet);
        let mut network = Network::new(id.to_string().repeat(64), name, Driver::Bridge);
        network.bridge = format!("bh-{name}");
        network.subnets.push(Subnet { subnet, range: None, gateway, reserved: BTreeMap::new() });
        network
    }

    fn member(name: &str, address: IpNet) -> Member {
        let IpNet::V4(address) = address else { panic!() };
        let endpoint = LiveEndpoint {
            id: String::new(),
            interface: "eth0".into(),
            host_link: "v".into(),
            ipv4: Some(address),
            ipv6: None,
            gateway4: None,
            gateway6: None,
            mac: String::new(),
            linked: Vec::new(),
            link_local: Vec::new(),
            names: vec![name.to_owned()],
        };
        Member { name: name.into(), endpoint }
    }

    #[test]
    fn networks_are_kept_found_and_not_mixed_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = NetworkStore::open(dir.path().join("n")).unwrap();
        store.add(network('a', "web", "10.1.0.0/24")).unwrap();
        store.add(network('b', "db", "10.2.0.0/24")).unwrap();
        let conflict = |network| store.add(network).err().unwrap();
        assert_eq!(conflict(network('c', "web", "10.3.0.0/24")).message, "network with name web already exists");
        assert_eq!(conflict(network('c', "x", "10.0.0.0/8")).http_status(), 403);
        let store = NetworkStore::open(dir.path().join("n")).unwrap();
        for (reference, name) in [("web", "web"), ("aaa", "web"), (&"b".repeat(64), "db")] {
            assert_eq!(store.find(reference).unwrap().name, name);
        }
        let unknown = store.find("nope").err().unwrap();
        assert_eq!((unknown.http_status().as_u16(), unknown.message.as_str()), (404, "network nope not found"));
        store.remove(&store.find("web").unwrap()).unwrap();
        assert_eq!(store.all().len(), 1);
        assert_eq!(NetworkStore::open(dir.path().join("n")).unwrap().all().len(), 1);
    }

    #[test]
    fn addresses_belong_to_members() {
        let dir = tempfile::tempdir().unwrap();
        let store = NetworkStore::open(dir.path().to_owned()).unwrap();
        let web = store.add(network('a', "web", "10.1.0.0/29")).unwrap();
        let asked = |text: &str| store.allocate(&web.id, &[text.parse().unwrap()]);
        let first = asked("10.1.0.3").unwrap()[0];
        assert_eq!(first.to_string(), "10.1.0.3/29");
        assert_eq!(asked("10.1.0.3").err().unwrap().message, "Address already in use");
        assert!(asked("10.9.0.3").err().unwrap().message.starts_with("Invalid address 10.9.0.3"));
        store.join(&web.id, "c1", member("one", first));
        assert_eq!(store.remove(&web).err().unwrap().http_status(), 403);
        store.rename("c1", "one", "Two");
        assert_eq!(store.members(&web.id)["c1"].endpoint.names, ["two"]);
        store.leave(&web.id, "c1");
        asked("10.1.0.3").unwrap();
    }
}
