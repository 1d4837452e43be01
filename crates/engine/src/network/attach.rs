//! Puts a container on its networks before it starts, and takes all of it back.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bollard::models::{ContainerConfig, EndpointSettings, HostConfig};
use hostnet::dns::{NameSockets, Upstream};
use hostnet::resolver::ResolvConf;
use hostnet::{Namespace, Plug, Protocol, ReadySandbox};
use ipnet::IpNet;
use proto::{ErrorKind, Isolation};
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Endpoints, LiveEndpoint, PublishedPort};
use super::files::{self, FilesRequest};
use super::links::parse_link;
use super::neighbours::Neighbours;
use super::ports::{self, Target, WantedPort};
use super::rates::rates;
use super::ready::{ReadyLink, Taken, host_link};
use super::record::{Driver, Network};
use super::store::Member;
use super::{Networks, Sandbox, host_error, lock, new_id};
use crate::error::{ApiError, ApiResult};

/// Further addresses of one endpoint.
const MOST_LINK_LOCAL: usize = 16;

/// A container that is to be put on networks.
#[derive(Debug, Clone, Copy)]
pub struct AttachRequest<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its names, and the ports that it exposes.
    pub config: &'a ContainerConfig,
    /// What it publishes, and what it is to know of names.
    pub host: &'a HostConfig,
    /// Folder of its files.
    pub dir: &'a Path,
    /// Whether its own interfaces or its utility VM's are on the networks.
    pub isolation: Isolation,
}

/// Takes back what was made of an attachment, unless it was finished.
struct Undo<'a> {
    networks: &'a Networks,
    id: &'a str,
    endpoints: Endpoints,
    finished: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.networks.release(self.id, &self.endpoints);
        }
    }
}

impl Networks {
    /// Puts a container on its networks; the answer is for its record. Addresses, ports, namespace, links, routes, names, files. Whatever fails is undone.
    /// Shape: `waiting` is the namespace of the utility VM that the container is to have; it is taken if it is of use.
    ///
    /// When: in a blocking thread in a runtime's context; the container does not run.
    ///
    /// # Errors
    /// 404 for a network that is not there; 400 for what a network cannot give; 403 for an address that is taken; 500 for
    /// a port that is, in dockerd's words, and for what the host refuses.
    pub fn attach(
        &self,
        request: &AttachRequest<'_>,
        mut endpoints: Endpoints,
        waiting: &mut Option<ReadySandbox>,
    ) -> ApiResult<Endpoints> {
        endpoints.rest();
        self.leaving.wait_for(request.id);
        let mode = request.host.network_mode.as_deref().unwrap_or_default();
        if mode.starts_with("container:") {
            return Ok(endpoints);
        }
        let is_guest = request.isolation == Isolation::Hyperv;
        if let Some(driver) = [("host", Driver::Host), ("none", Driver::Null)].iter().find(|(name, _)| *name == mode) {
            let network = self.store.find(driver.0)?;
            if is_guest {
                self.ready.note_guest(None);
            }
            let endpoint = endpoints.all.entry(network.name.clone()).or_default();
            endpoint.network_id.clone_from(&network.id);
            let live = without_interface(new_id()?);
            self.store.join(&network.id, request.id, Member { name: request.name.to_owned(), endpoint: live.clone() });
            endpoint.live = Some(live);
            files::write_files(request.dir, &self.files_request(request, &endpoints, None))?;
            return Ok(endpoints);
        }
        self.attach_to_bridges(request, endpoints, waiting)
    }

    fn attach_to_bridges(
        &self,
        request: &AttachRequest<'_>,
        endpoints: Endpoints,
        waiting: &mut Option<ReadySandbox>,
    ) -> ApiResult<Endpoints> {
        let wanted = self.wanted(endpoints, request.host.network_mode.as_deref().unwrap_or_default())?;
        for (network, endpoint) in &wanted {
            check(network, &endpoint.asked)?;
            rates(request.isolation, &endpoint.asked)?;
        }
        let mut undo = Undo { networks: self, id: request.id, endpoints: Endpoints::default(), finished: false };
        let mut planned = Vec::new();
        for (network, mut endpoint) in wanted {
            let network = self.ensure(&network)?;
            let live = self.join(request, &network, &endpoint.asked)?;
            endpoint.network_id.clone_from(&network.id);
            endpoint.live = Some(live);
            undo.endpoints.all.insert(network.name.clone(), endpoint);
            planned.push(network);
        }
        lock(&self.sandboxes).insert(request.id.to_owned(), Sandbox::default());
        let wanted = ports::wanted_ports(request.host, request.config.exposed_ports.as_deref().unwrap_or_default())?;
        // Before anything is made: a port that is taken is the commonest fault.
        let taken = self.take_ports(request, &undo.endpoints, &wanted)?;
        let Taken { namespace, mut link, names, guard } =
            self.make_namespace(request, planned.first().map(Arc::as_ref), waiting)?;
        undo.endpoints.sandbox = true;
        for network in &planned {
            self.plug(&namespace, request, network, &mut undo.endpoints, link.take())?;
        }
        match guard {
            Some(guard) => self.tell_guard(guard, request.id, &undo.endpoints)?,
            None => self.route(&namespace, request, &undo.endpoints)?,
        }
        let has_names = self.is_named(&undo.endpoints);
        if has_names {
            self.serve_names(request, &namespace, &undo.endpoints, names)?;
        }
        let name_server = has_names.then_some(IpAddr::V4(hostnet::dns::ADDRESS));
        files::write_files(request.dir, &self.files_request(request, &undo.endpoints, name_server))?;
        undo.endpoints.ports = self.publish(request, taken)?;
        undo.finished = true;
        Ok(std::mem::take(&mut undo.endpoints))
    }

    /// One that waited with a link on the container's first network, or a new one.
    fn make_namespace(
        &self,
        request: &AttachRequest<'_>,
        first: Option<&Network>,
        waiting: &mut Option<ReadySandbox>,
    ) -> ApiResult<Taken> {
        std::fs::create_dir_all(&self.namespaces)
            .map_err(|error| ApiError::caused("cannot make the folder of namespaces", &error))?;
        let path = self.namespace_path(request.id);
        let is_guest = request.isolation == Isolation::Hyperv;
        if let Some(network) = first {
            if is_guest {
                self.ready.note_guest(Some(network));
            }
            let of_guest = waiting.take_if(|waiting| waiting.end().bridge == network.bridge);
            let taken = of_guest.and_then(|waiting| Taken::bind(waiting, &path));
            if let Some(mut taken) = taken.or_else(|| self.ready.take(network, &path)) {
                // A guest asks another port than a process container.
                taken.names = taken.names.filter(|_| !is_guest || taken.guard.is_some());
                return Ok(taken);
            }
        }
        Ok(Taken::new(Namespace::make(&path).map_err(|error| host_error(&error))?))
    }

    /// The networks of a container, the one of its mode first: it becomes eth0.
    fn wanted(&self, endpoints: Endpoints, mode: &str) -> ApiResult<Vec<(Arc<Network>, Endpoint)>> {
        let mut wanted = Vec::new();
        for (name, endpoint) in endpoints.all {
            let by_id = Some(&endpoint.network_id).filter(|id| !id.is_empty()).and_then(|id| self.store.find(id).ok());
            let network = by_id.map_or_else(|| self.store.find(&name), Ok)?;
            if network.driver != Driver::Bridge {
                return Err(ApiError::invalid(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode",
                ));
            }
            wanted.push((network, endpoint));
        }
        let primary = self.store.find(if mode.is_empty() { "bridge" } else { mode }).ok();
        wanted.sort_by_key(|(network, _)| primary.as_ref().is_none_or(|primary| primary.id != network.id));
        Ok(wanted)
    }

    /// Gives a container addresses on a network and notes it as a member.
    pub(super) fn join(
        &self,
        request: &AttachRequest<'_>,
        network: &Network,
        asked: &EndpointSettings,
    ) -> ApiResult<LiveEndpoint> {
        let id = new_id()?;
        let mac = match asked.mac_address.as_deref().filter(|mac| !mac.is_empty()) {
            Some(text) => Some(parse_mac(text)?),
            None => None,
        };
        let wanted = asked_addresses(asked)?;
        let taken = match self.store.allocate(&network.id, &wanted) {
            // What is missing may be with somebody who is just leaving, but no wrong address becomes a right one.
            Err(error) if error.kind != ErrorKind::InvalidArgument && self.leaving.wait_for_all() => {
                self.store.allocate(&network.id, &wanted)?
            }
            outcome => outcome?,
        };
        let v4 = taken.iter().find_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
        let v6 = taken.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
        let gateway = |is_v4: bool| {
            let of_family = |subnet: &&super::record::Subnet| matches!(subnet.subnet, IpNet::V4(_)) == is_v4;
            let leads = !network.internal;
            leads.then(|| network.subnets.iter().find(of_family).map(|subnet| subnet.gateway)).flatten()
        };
        let live = LiveEndpoint {
            interface: String::new(),
            host_link: host_link(&id),
            ipv4: v4,
            ipv6: v6,
            gateway4: v4.and(gateway(true)).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
            gateway6: v6.and(gateway(false)).and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
            mac: format_mac(mac.unwrap_or_else(|| derived_mac(v4.map(|net| net.addr()), &id))),
            names: if network.has_names() { names(request, asked) } else { Vec::new() },
            link_local: link_local(asked)?,
            linked: if network.has_names() { linked_names(asked)? } else { Vec::new() },
            id,
        };
        self.store.join(&network.id, request.id, Member { name: request.name.to_owned(), endpoint: live.clone() });
        Ok(live)
    }

    /// Makes the link of an endpoint, or takes the one that is there, and notes how its end in the container is called.
    pub(super) fn plug(
        &self,
        namespace: &Namespace,
        request: &AttachRequest<'_>,
        network: &Network,
        endpoints: &mut Endpoints,
        ready: Option<ReadyLink>,
    ) -> ApiResult<()> {
        let endpoint = endpoints.all.get(&network.name).and_then(|endpoint| endpoint.live.clone());
        let Some(mut live) = endpoint else { return Ok(()) };
        let is_ready = ready.is_some();
        let reaches_guest = ready.as_ref().is_some_and(|ready| ready.reaches_guest);
        live.host_link = ready.map_or(live.host_link, |ready| ready.host_link);
        match request.isolation {
            Isolation::Process => self.plug_process(namespace, network, &mut live, is_ready)?,
            Isolation::Hyperv if reaches_guest => live.interface = "eth0".to_owned(),
            Isolation::Hyperv => self.plug_guest(namespace, network, &mut live, endpoints, is_ready)?,
        }
        tracing::debug!(
            container = request.id,
            network = network.name,
            interface = live.interface,
            ready = is_ready,
            "plugged in"
        );
        // The link is another one by now if it waited.
        self.store.join(&network.id, request.id, Member { name: request.name.to_owned(), endpoint: live.clone() });
        if let Some(endpoint) = endpoints.all.get_mut(&network.name) {
            endpoint.live = Some(live);
        }
        Ok(())
    }

    fn plug_process(
        &self,
        namespace: &Namespace,
        network: &Network,
        live: &mut LiveEndpoint,
        ready: bool,
    ) -> ApiResult<()> {
        let plug = Plug {
            bridge: network.bridge.clone(),
            host_link: live.host_link.clone(),
            name: None,
            mac: parse_mac(&live.mac)?,
            mtu: network.mtu(),
            ipv4: live.ipv4,
            ipv6: live.ipv6,
            link_local: live.link_local.clone(),
            isolated: !network.connects_neighbours(),
            ready,
        };
        live.interface = hostnet::plug(namespace, &plug).map_err(|error| host_error(&error))?.name;
        Ok(())
    }

    /// True if the container is on a network whose members find each other by name.
    pub(super) fn is_named(&self, endpoints: &Endpoints) -> bool {
        let live = endpoints.all.values().filter(|endpoint| endpoint.live.is_some());
        live.filter_map(|endpoint| self.store.find(&endpoint.network_id).ok()).any(|network| network.has_names())
    }

    /// Sends what is not for neighbours the way out. A guest does so itself, and may send what it has been given.
    pub(super) fn route(
        &self,
        namespace: &Namespace,
        request: &AttachRequest<'_>,
        endpoints: &Endpoints,
    ) -> ApiResult<()> {
        if request.isolation == Isolation::Hyperv {
            return self.guard_guest(namespace, request.id, endpoints);
        }
        let live = endpoints.way_out().and_then(|(_, endpoint)| endpoint.live.as_ref());
        let (v4, v6) = live.map_or((None, None), |live| (live.gateway4, live.gateway6));
        namespace.set_default_routes(v4, v6).map_err(|error| host_error(&error))
    }

    /// Takes a container's ports on the host.
    pub(super) fn take_ports(
        &self,
        request: &AttachRequest<'_>,
        endpoints: &Endpoints,
        wanted: &[WantedPort],
    ) -> ApiResult<Vec<ports::TakenPort>> {
        let Some((live, network)) = self.publishing(endpoints).filter(|_| !wanted.is_empty()) else {
            return Ok(Vec::new());
        };
        let target = Target { ipv4: live.ipv4.map(|net| net.addr()), ipv6: live.ipv6.map(|net| net.addr()) };
        let own: BTreeSet<(Protocol, SocketAddr)> = {
            let sandboxes = lock(&self.sandboxes);
            sandboxes.values().flat_map(|sandbox| &sandbox.ports).map(|port| (port.protocol, port.host)).collect()
        };
        ports::take(wanted, target, network.host_binding(), &own).map_err(|text| {
            ApiError::internal(format!(
                "driver failed programming external connectivity on endpoint {} ({}): {text}",
                request.name, live.id
            ))
        })
    }

    /// Where published ports lead: the way out, unless that leads nowhere.
    fn publishing<'e>(&self, endpoints: &'e Endpoints) -> Option<(&'e LiveEndpoint, Arc<Network>)> {
        let (_, endpoint) = endpoints.way_out()?;
        let network = self.store.find(&endpoint.network_id).ok()?;
        (!network.internal).then_some((endpoint.live.as_ref()?, network))
    }

    /// Lets traffic through the ports that were taken.
    pub(super) fn publish(
        &self,
        request: &AttachRequest<'_>,
        taken: Vec<ports::TakenPort>,
    ) -> ApiResult<Vec<PublishedPort>> {
        let published: Vec<PublishedPort> = taken.iter().map(|taken| taken.port.clone()).collect();
        let stop = {
            let mut sandboxes = lock(&self.sandboxes);
            let sandbox = sandboxes.entry(request.id.to_owned()).or_default();
            sandbox.ports.clone_from(&published);
            sandbox.publishing.clone()
        };
        for port in taken {
            let served = port.socket.serve(port.port.target, stop.clone());
            served.map_err(|error| ApiError::caused("cannot serve a published port", &error))?;
        }
        let publications: Vec<_> = published.iter().filter_map(PublishedPort::publication).collect();
        self.firewall.publish(&publications).map_err(|error| host_error(&error))?;
        Ok(published)
    }

    /// Starts the name server of a container. Shape: `ready` are the sockets that its namespace has already.
    pub(super) fn serve_names(
        &self,
        request: &AttachRequest<'_>,
        namespace: &Namespace,
        endpoints: &Endpoints,
        ready: Option<NameSockets>,
    ) -> ApiResult<()> {
        // In a hyperv container's namespace nobody else is.
        let sockets = match (request.isolation, ready) {
            (_, Some(ready)) => Ok(ready),
            (Isolation::Process, None) => NameSockets::open(namespace),
            (Isolation::Hyperv, None) => NameSockets::open_at(namespace, hostnet::dns::ADDRESS),
        };
        let sockets = sockets.map_err(|error| host_error(&error))?;
        let stop = CancellationToken::new();
        let directory = Neighbours { store: Arc::clone(&self.store), container: request.id.to_owned() };
        let own = (request.isolation == Isolation::Process).then_some(namespace);
        let upstreams = upstreams(request.host, own, endpoints);
        sockets
            .serve(Arc::new(directory), upstreams, stop.clone())
            .map_err(|error| ApiError::caused("cannot serve names", &error))?;
        lock(&self.sandboxes).entry(request.id.to_owned()).or_default().names = Some(stop);
        Ok(())
    }

    pub(super) fn files_request<'a>(
        &self,
        request: &AttachRequest<'a>,
        endpoints: &'a Endpoints,
        name_server: Option<IpAddr>,
    ) -> FilesRequest<'a> {
        let way_out = endpoints.way_out().and_then(|(_, endpoint)| endpoint.live.as_ref());
        let default = || self.store.find("bridge").ok()?.subnets.first().map(|subnet| subnet.gateway);
        let gateway = way_out.and_then(|live| live.gateway4.map(IpAddr::V4).or(live.gateway6.map(IpAddr::V6)));
        let apart = way_out.is_some_and(|live| !live.host_link.is_empty());
        let gateway = gateway.or_else(default);
        FilesRequest { config: request.config, host: request.host, endpoints, name_server, gateway, apart }
    }
}

/// On the host's network, or on none.
fn without_interface(id: String) -> LiveEndpoint {
    LiveEndpoint {
        id,
        interface: String::new(),
        host_link: String::new(),
        ipv4: None,
        ipv6: None,
        gateway4: None,
        gateway6: None,
        mac: String::new(),
        names: Vec::new(),
        linked: Vec::new(),
        link_local: Vec::new(),
    }
}

/// What a network cannot give. Source: moby `daemon/container_operations.go`, `validateNetworkingConfig`.
///
/// # Errors
/// 400.
pub(super) fn check(network: &Network, asked: &EndpointSettings) -> ApiResult<()> {
    let has_addresses = !asked_addresses(asked)?.is_empty();
    if has_addresses && !network.has_names() {
        return Err(ApiError::invalid("user specified IP address is supported on user defined networks only"));
    }
    if has_addresses && !network.subnets_given {
        return Err(ApiError::invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        ));
    }
    if !network.has_names() && asked.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
        return Err(ApiError::invalid(
            "network-scoped alias is supported only for containers in user defined networks",
        ));
    }
    link_local(asked)?;
    linked_names(asked).map(drop)
}

fn asked_addresses(asked: &EndpointSettings) -> ApiResult<Vec<IpAddr>> {
    let ipam = asked.ipam_config.clone().unwrap_or_default();
    let texts = [ipam.ipv4_address, ipam.ipv6_address].into_iter().flatten().filter(|text| !text.is_empty());
    texts.map(|text| text.parse().map_err(|_| ApiError::invalid(format!("invalid IP address: {text}")))).collect()
}

/// Source: RFC 3927; moby `libnetwork/endpoint.go`, whose mask this is.
fn link_local(asked: &EndpointSettings) -> ApiResult<Vec<IpNet>> {
    let ipam = asked.ipam_config.clone().unwrap_or_default();
    let read = |text: &String| {
        let address: Ipv4Addr = text.parse().ok()?;
        Some(IpNet::V4(ipnet::Ipv4Net::new(address, 16).ok()?)).filter(|_| address.is_link_local())
    };
    let texts = ipam.link_local_ips.unwrap_or_default();
    if texts.len() > MOST_LINK_LOCAL {
        return Err(ApiError::invalid(format!("at most {MOST_LINK_LOCAL} link-local addresses")));
    }
    let wrong = |text: &String| ApiError::invalid(format!("invalid link-local IP address: {text}"));
    texts.iter().map(|text| read(text).ok_or_else(|| wrong(text))).collect()
}

fn names(request: &AttachRequest<'_>, asked: &EndpointSettings) -> Vec<String> {
    let short = request.id.get(..12).unwrap_or(request.id);
    let own = [request.name, short];
    let aliases = asked.aliases.iter().flatten().map(String::as_str);
    let mut names: Vec<String> = Vec::new();
    for name in own.into_iter().chain(aliases).chain(request.config.hostname.as_deref()) {
        let name = name.to_lowercase();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Names that this container alone has for others: each with the one by which everybody knows it.
fn linked_names(asked: &EndpointSettings) -> ApiResult<Vec<(String, String)>> {
    let links = asked.links.iter().flatten();
    links.map(|text| parse_link(text).map(|(name, alias)| (alias.to_lowercase(), name.to_lowercase()))).collect()
}

fn upstreams(host: &HostConfig, namespace: Option<&Namespace>, endpoints: &Endpoints) -> Vec<Upstream> {
    // Without a way out, no question leaves either.
    let leads = endpoints.way_out().and_then(|(_, endpoint)| endpoint.live.as_ref());
    if leads.is_none_or(|live| live.gateway4.is_none() && live.gateway6.is_none()) {
        return Vec::new();
    }
    let given: Vec<IpAddr> = host.dns.iter().flatten().filter_map(|server| server.parse().ok()).collect();
    if given.is_empty() {
        let servers = ResolvConf::of_host().servers;
        return servers.into_iter().map(|address| Upstream { address, from: None }).collect();
    }
    // The container's own servers are asked from where it is, so that they may be its neighbours; where it is in a utility VM,
    // from the host, which reaches these, too.
    given.into_iter().map(|address| Upstream { address, from: namespace.cloned() }).collect()
}

/// From the address, as Docker makes it: 02:42 and the four bytes.
fn derived_mac(address: Option<Ipv4Addr>, id: &str) -> [u8; 6] {
    let mut mac = [0x02, 0x42, 0, 0, 0, 0];
    match address {
        Some(address) => mac[2..].copy_from_slice(&address.octets()),
        None => {
            let bytes = hex::decode(id.get(..8).unwrap_or_default()).unwrap_or_default();
            mac[2..].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
    }
    mac
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// `02:42:ac:11:00:02`, also with dashes; no group address.
///
/// # Errors
/// 400.
pub(super) fn parse_mac(text: &str) -> ApiResult<[u8; 6]> {
    let bytes: Vec<u8> = text.split([':', '-']).map_while(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac: Option<[u8; 6]> = bytes.try_into().ok();
    mac.filter(|mac| text.len() == 17 && mac[0] & 1 == 0 && mac != &[0; 6])
        .ok_or_else(|| ApiError::invalid(format!("invalid MAC address: address {text}: invalid MAC address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_and_made() {
        assert_eq!(parse_mac("02-42-ac-11-00-02").unwrap(), [2, 0x42, 0xac, 0x11, 0, 2]);
        assert_eq!(format_mac(derived_mac(Some(Ipv4Addr::new(172, 17, 0, 2)), "")), "02:42:ac:11:00:02");
        for bad in ["", "1:2:3:4:5:6", "01:00:00:00:00:01", "00:00:00:00:00:00", "02:42:ac:11:00:zz", "02:42:ac:11:00"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_gives_only_what_it_has() {
        let asked = |json: serde_json::Value| -> EndpointSettings { serde_json::from_value(json).unwrap() };
        let address = asked(serde_json::json!({"IPAMConfig": {"IPv4Address": "10.0.0.9"}}));
        let alias = asked(serde_json::json!({"Aliases": ["x"]}));
        let mut network = Network::new("a".repeat(64), "bridge", Driver::Bridge);
        assert!(check(&network, &alias).unwrap_err().message.starts_with("network-scoped alias"));
        assert!(check(&network, &address).unwrap_err().message.ends_with("user defined networks only"));
        network.name = "mine".into();
        check(&network, &alias).unwrap();
        assert!(check(&network, &address).unwrap_err().message.ends_with("user configured subnets"));
        network.subnets_given = true;
        check(&network, &address).unwrap();
    }
}
