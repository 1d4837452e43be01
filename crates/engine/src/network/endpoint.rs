//! What a container has to do with networks: which it is on, and what it has there while it runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bollard::models::EndpointSettings;
use hostnet::{Protocol, Publication};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A container's networks, as its record keeps them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoints {
    /// By the network's name.
    pub all: BTreeMap<String, Endpoint>,
    /// Ports of the host that lead to it while it runs.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// It has a namespace that the engine made.
    #[serde(default)]
    pub sandbox: bool,
}

impl Eq for Endpoints {}

/// A container's place on one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network, once it is known.
    pub network_id: String,
    /// What the client asked for.
    pub asked: EndpointSettings,
    /// What it has while it runs.
    pub live: Option<LiveEndpoint>,
}

/// What a container has on a network while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveEndpoint {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Name of the interface in the container; empty where it has none.
    pub interface: String,
    /// Name of the other end on the host; empty where there is none.
    pub host_link: String,
    /// Its address.
    pub ipv4: Option<Ipv4Net>,
    /// Its address.
    pub ipv6: Option<Ipv6Net>,
    /// Where it sends what is not for neighbours.
    pub gateway4: Option<std::net::Ipv4Addr>,
    /// Where it sends what is not for neighbours.
    pub gateway6: Option<std::net::Ipv6Addr>,
    /// Its hardware address.
    pub mac: String,
    /// Names by which neighbours find it, in lower case.
    pub names: Vec<String>,
    /// Names that it alone has for neighbours, each with one that everybody has, in lower case.
    #[serde(default)]
    pub linked: Vec<(String, String)>,
    /// Further addresses, which mean something on this network only.
    #[serde(default)]
    pub link_local: Vec<IpNet>,
}

/// A port of the container that the host publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// In the container.
    pub container_port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// On the host.
    pub host: std::net::SocketAddr,
    /// Where it leads.
    pub target: std::net::SocketAddr,
}

impl PublishedPort {
    /// What the firewall is to do about it: nothing where the kernel cannot translate.
    #[must_use]
    pub fn publication(&self) -> Option<Publication> {
        let Self { protocol, host, target, .. } = *self;
        let loopback6 = host.is_ipv6() && host.ip().is_loopback();
        (host.is_ipv4() == target.is_ipv4() && !loopback6).then_some(Publication { protocol, host, target })
    }
}

impl LiveEndpoint {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.ipv4.map(|net| IpAddr::V4(net.addr()));
        v4.into_iter().chain(self.ipv6.map(|net| IpAddr::V6(net.addr())))
    }
}

impl Endpoint {
    /// One that a client asks for.
    #[must_use]
    pub fn asked(asked: EndpointSettings) -> Self {
        Self { network_id: String::new(), asked, live: None }
    }

    /// As Docker shows it. `short_id` is the container's, by which neighbours find it too.
    #[must_use]
    pub fn show(&self, short_id: &str) -> Value {
        let live = self.live.as_ref();
        let text = |of: fn(&LiveEndpoint) -> Option<String>| live.and_then(of).unwrap_or_default();
        let aliases = self.asked.aliases.clone().filter(|aliases| !aliases.is_empty());
        let mac = text(|live| Some(live.mac.clone()));
        let ipam = self.asked.ipam_config.as_ref().map(|ipam| {
            let mut shown = serde_json::Map::new();
            for (name, value) in [("IPv4Address", &ipam.ipv4_address), ("IPv6Address", &ipam.ipv6_address)] {
                if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                    shown.insert(name.into(), json!(value));
                }
            }
            if let Some(addresses) = ipam.link_local_ips.as_ref().filter(|addresses| !addresses.is_empty()) {
                shown.insert("LinkLocalIPs".into(), json!(addresses));
            }
            shown
        });
        let names = live.map(|live| live.names.clone()).filter(|names| !names.is_empty());
        json!({
            "IPAMConfig": ipam,
            "Links": self.asked.links,
            "Aliases": aliases.map(|mut aliases| {
                if !aliases.iter().any(|alias| alias == short_id) { aliases.push(short_id.to_owned()); }
                aliases
            }),
            "MacAddress": if mac.is_empty() { self.asked.mac_address.clone().unwrap_or_default() } else { mac },
            "DriverOpts": self.asked.driver_opts,
            "GwPriority": self.asked.gw_priority.unwrap_or(0),
            "NetworkID": self.network_id,
            "EndpointID": text(|live| Some(live.id.clone())),
            "Gateway": text(|live| live.gateway4.map(|address| address.to_string())),
            "IPAddress": text(|live| live.ipv4.map(|net| net.addr().to_string())),
            "IPPrefixLen": live.and_then(|live| live.ipv4).map_or(0, |net| net.prefix_len()),
            "IPv6Gateway": text(|live| live.gateway6.map(|address| address.to_string())),
            "GlobalIPv6Address": text(|live| live.ipv6.map(|net| net.addr().to_string())),
            "GlobalIPv6PrefixLen": live.and_then(|live| live.ipv6).map_or(0, |net| net.prefix_len()),
            "DNSNames": names,
        })
    }
}

impl Endpoints {
    /// Forgets what it had while it ran.
    pub fn rest(&mut self) {
        self.all.values_mut().for_each(|endpoint| endpoint.live = None);
        self.ports.clear();
        self.sandbox = false;
    }

    /// Neighbours find it by another name now.
    pub fn rename(&mut self, old: &str, new: &str) {
        let (old, new) = (old.to_lowercase(), new.to_lowercase());
        let live = self.all.values_mut().filter_map(|endpoint| endpoint.live.as_mut());
        live.flat_map(|live| &mut live.names).filter(|name| **name == old).for_each(|name| name.clone_from(&new));
    }

    /// The endpoint through which it reaches what is not on its networks: the highest priority, then a gateway, then names.
    #[must_use]
    pub fn way_out(&self) -> Option<(&String, &Endpoint)> {
        let rank = |endpoint: &Endpoint| {
            let leads = endpoint.live.as_ref().is_some_and(|live| live.gateway4.is_some() || live.gateway6.is_some());
            (endpoint.asked.gw_priority.unwrap_or(0), leads)
        };
        // Of equals the first by name.
        self.all.iter().rev().filter(|(_, endpoint)| endpoint.live.is_some()).max_by_key(|(_, endpoint)| rank(endpoint))
    }
}
