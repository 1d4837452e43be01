//! The engine's one nftables table: which bridges may talk to whom, which ports of the host lead where.
//!
//! The rules never change; networks and published ports are elements of sets and maps. What the table holds is kept here as
//! well, so that it can be compared and put back when somebody flushes it. Docker's own rules beside it are not touched, but
//! for one thing: with Docker's policy to drop what is forwarded, our bridges are let through in the chain that Docker
//! keeps for this, `DOCKER-USER`.

mod docker;
mod elements;
pub(crate) mod guard;
pub(crate) mod nft;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Its name as Docker and nftables write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What the firewall is to know of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRules {
    /// Its bridge.
    pub bridge: String,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// Nothing of it leaves the bridge.
    pub internal: bool,
    /// What leaves it bears the host's address.
    pub masquerade: bool,
}

/// A port of the host that leads into a container. Shape: both addresses are of one family; an unspecified `host` address
/// stands for all of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Publication {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it is reached.
    pub host: SocketAddr,
    /// Where that leads.
    pub target: SocketAddr,
}

#[derive(Default)]
struct State {
    networks: BTreeMap<String, NetworkRules>,
    publications: BTreeSet<Publication>,
    /// It was loaded, and not taken away since.
    loaded: bool,
}

/// The table. Shape: changes are made one after the other, each whole or not at all.
pub struct Firewall {
    table: String,
    state: Mutex<State>,
}

/// Chains, their hooks, and their rules.
const CHAINS: &[(&str, &str, &[&str])] = &[
    (
        "published",
        "",
        &[
            "dnat ip to ip daddr . meta l4proto . th dport map @one4",
            "dnat ip to meta l4proto . th dport map @any4",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @one6",
            "dnat ip6 to meta l4proto . th dport map @any6",
        ],
    ),
    // Containers may not reach the host's loopback, though their bridges route it for published ports.
    ("guard", "type filter hook prerouting priority raw;", &["ip daddr 127.0.0.0/8 iifname @bridges drop"]),
    // What comes from our own bridges goes by the proxy: the answer must not take a shorter way back.
    (
        "incoming",
        "type nat hook prerouting priority dstnat;",
        &["iifname @bridges return", "meta l4proto { tcp, udp } fib daddr type local jump published"],
    ),
    // No kernel routes ::1, so the proxy serves it.
    (
        "own",
        "type nat hook output priority -100;",
        &["ip6 daddr ::1 return", "meta l4proto { tcp, udp } fib daddr type local jump published"],
    ),
    (
        "outgoing",
        "type nat hook postrouting priority srcnat;",
        &[
            "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
            "ip saddr @masquerade4 oifname != @bridges masquerade",
            "ip6 saddr @masquerade6 oifname != @bridges masquerade",
        ],
    ),
    // Frames from one port of a bridge to another pass here, too, through the tables of all engines: what is nobody's business
    // is to be found out with few looks.
    ("leaving", "", &["iifname . oifname @same accept", "oifname @bridges drop", "iifname @internal drop", "accept"]),
    (
        "arriving",
        "",
        &["oifname @internal drop", "ct state established,related accept", "ct status dnat accept", "drop"],
    ),
    (
        "through",
        "type filter hook forward priority filter;",
        &["iifname @bridges jump leaving", "oifname @bridges jump arriving"],
    ),
];

impl Firewall {
    /// A table of this name, not loaded yet.
    #[must_use]
    pub fn new(table: String) -> Self {
        Self { table, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the table into the kernel as it is kept here, in one transaction.
    fn load(&self, state: &mut State) -> Result<(), NetworkError> {
        nft::run(&self.render(state))?;
        state.loaded = true;
        docker::let_through(&self.table, state.networks.keys());
        Ok(())
    }

    /// Takes the table away, and what an earlier engine left of it.
    ///
    /// # Errors
    /// `Firewall`.
    pub fn unload(&self) -> Result<(), NetworkError> {
        self.take_away(&mut self.state())
    }

    fn take_away(&self, state: &mut State) -> Result<(), NetworkError> {
        let table = &self.table;
        // Whoever watches over it sees it go, and must not bring it back.
        state.loaded = false;
        docker::let_through(table, [].into_iter());
        nft::run(&format!("table inet {table}\ndelete table inet {table}\n"))
    }

    /// Adds a network; the first one brings the table.
    ///
    /// # Errors
    /// `Firewall`; the network is not there then.
    pub fn add_network(&self, network: NetworkRules) -> Result<(), NetworkError> {
        let bridge = network.bridge.clone();
        let mut state = self.state();
        state.networks.insert(bridge.clone(), network);
        self.load(&mut state).inspect_err(|_| {
            state.networks.remove(&bridge);
        })
    }

    /// Removes a network. With the last one the table goes: it would cost every packet of the host's.
    ///
    /// # Errors
    /// `Firewall`.
    pub fn remove_network(&self, bridge: &str) -> Result<(), NetworkError> {
        let mut state = self.state();
        state.networks.remove(bridge);
        if state.networks.is_empty() { self.take_away(&mut state) } else { self.load(&mut state) }
    }

    /// Publishes ports.
    ///
    /// # Errors
    /// `Firewall`; none is published then.
    pub fn publish(&self, publications: &[Publication]) -> Result<(), NetworkError> {
        if publications.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let known: Vec<Publication> =
            publications.iter().filter(|one| !state.publications.contains(*one)).copied().collect();
        state.publications.extend(&known);
        let commands: String = known.iter().map(|one| self.element("add", one)).collect();
        // Somebody may have taken the table away: put all of it back.
        let outcome =
            nft::run(&commands).or_else(|error| if state.loaded { nft::run(&self.render(&state)) } else { Err(error) });
        outcome.inspect_err(|_| state.publications.retain(|one| !known.contains(one)))
    }

    /// Ends publications; those that are not there are left out.
    ///
    /// # Errors
    /// `Firewall`.
    pub fn unpublish(&self, publications: &[Publication]) -> Result<(), NetworkError> {
        let mut state = self.state();
        let known: Vec<Publication> =
            publications.iter().filter(|one| state.publications.remove(*one)).copied().collect();
        // Where there is no table, nothing is published.
        if known.is_empty() || !state.loaded {
            return Ok(());
        }
        let commands: String = known.iter().map(|one| self.element("delete", one)).collect();
        nft::run(&commands).or_else(|_| nft::run(&self.render(&state)))
    }

    /// Puts the table back if it is not what it should be; true if it was not.
    ///
    /// # Errors
    /// `Firewall`.
    pub fn restore(&self) -> Result<bool, NetworkError> {
        let state = self.state();
        if !state.loaded {
            return Ok(false);
        }
        docker::let_through(&self.table, state.networks.keys());
        if nft::counts(&self.table)?.as_ref() == Some(&expected(&state)) {
            return Ok(false);
        }
        nft::run(&self.render(&state))?;
        Ok(true)
    }

    fn element(&self, verb: &str, one: &Publication) -> String {
        let (map, element) = map_element(one);
        format!("{verb} element inet {} {map} {{ {element} }}\n", self.table)
    }

    fn render(&self, state: &State) -> String {
        let mut text = format!("table inet {0}\ndelete table inet {0}\ntable inet {0} {{\n", self.table);
        for set in sets(state) {
            let elements: Vec<&str> = set.elements.iter().map(String::as_str).collect();
            let given =
                if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }};", elements.join(", ")) };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {} {{ type {};{}{given} }}", set.keyword, set.name, set.kind, set.flags);
        }
        for (name, hook, rules) in CHAINS {
            let _ = writeln!(text, "chain {name} {{\n{hook}\n{}\n}}", rules.join("\n"));
        }
        text.push_str("}\n");
        text
    }
}

/// A set or map as nftables declares it.
struct Set {
    keyword: &'static str,
    name: &'static str,
    kind: &'static str,
    flags: &'static str,
    elements: Vec<String>,
}

fn sets(state: &State) -> Vec<Set> {
    let set = |name, kind, elements| Set { keyword: "set", name, kind, flags: "", elements };
    let names = |wanted: fn(&NetworkRules) -> bool| {
        state
            .networks
            .values()
            .filter(|network| wanted(network))
            .map(|network| format!("\"{}\"", network.bridge))
            .collect()
    };
    let masked = |v4: bool| {
        let networks = state.networks.values().filter(|network| network.masquerade && !network.internal);
        let subnets = networks.flat_map(|network| &network.subnets);
        subnets.filter(|net| matches!(net, IpNet::V4(_)) == v4).map(|net| net.trunc().to_string()).collect::<Vec<_>>()
    };
    let mut sets = vec![
        set("bridges", "ifname", names(|_| true)),
        set("internal", "ifname", names(|network| network.internal)),
        set("same", "ifname . ifname", state.networks.keys().map(|name| format!("\"{name}\" . \"{name}\"")).collect()),
        Set { flags: " flags interval;", ..set("masquerade4", "ipv4_addr", masked(true)) },
        Set { flags: " flags interval;", ..set("masquerade6", "ipv6_addr", masked(false)) },
    ];
    for (name, kind) in MAPS {
        let elements = state.publications.iter().map(map_element).filter(|(map, _)| map == name);
        sets.push(Set { keyword: "map", name, kind, flags: "", elements: elements.map(|(_, text)| text).collect() });
    }
    sets
}

const MAPS: &[(&str, &str)] = &[
    ("any4", "inet_proto . inet_service : ipv4_addr . inet_service"),
    ("one4", "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"),
    ("any6", "inet_proto . inet_service : ipv6_addr . inet_service"),
    ("one6", "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service"),
];

/// The map that a publication belongs into, and the element that it is there.
fn map_element(one: &Publication) -> (&'static str, String) {
    let key = format!("{} . {}", one.protocol.as_str(), one.host.port());
    let value = format!("{} . {}", one.target.ip(), one.target.port());
    let address = one.host.ip();
    match address {
        IpAddr::V4(_) if address.is_unspecified() => ("any4", format!("{key} : {value}")),
        IpAddr::V4(_) => ("one4", format!("{address} . {key} : {value}")),
        IpAddr::V6(_) if address.is_unspecified() => ("any6", format!("{key} : {value}")),
        IpAddr::V6(_) => ("one6", format!("{address} . {key} : {value}")),
    }
}

/// How many elements and rules there should be, by name.
fn expected(state: &State) -> BTreeMap<String, usize> {
    let chains = CHAINS.iter().map(|(name, _, rules)| ((*name).to_owned(), rules.len()));
    chains.chain(sets(state).into_iter().map(|set| (set.name.to_owned(), set.elements.len()))).collect()
}

/// In a container's namespace: leads port 53 of the name server's address to the ports on which that listens. The answers
/// come from port 53 again.
pub(crate) fn redirect_names(address: Ipv4Addr, udp: u16, tcp: u16) -> Result<(), NetworkError> {
    let table = "bulkhead_names";
    nft::run(&format!(
        "table ip {table}\ndelete table ip {table}\ntable ip {table} {{
chain own {{ type nat hook output priority -100;
ip daddr {address} udp dport 53 dnat to {address}:{udp}
ip daddr {address} tcp dport 53 dnat to {address}:{tcp}
}}\n}}\n"
    ))
}

/// Where [`redirect_loopback`] has its rules.
const LOOPBACK_TABLE: &str = "inet bulkhead_ports";

/// Leads every TCP connection that this thread's namespace makes to its own loopback to one port, which is another one for each
/// family; no port leaves the family alone.
pub(crate) fn redirect_loopback(v4: u16, v6: Option<u16>) -> Result<(), NetworkError> {
    let v6 = v6.map(|port| format!("ip6 daddr ::1 meta l4proto tcp redirect to :{port}\n")).unwrap_or_default();
    nft::run(&format!(
        "table {LOOPBACK_TABLE}\ndelete table {LOOPBACK_TABLE}\ntable {LOOPBACK_TABLE} {{
chain own {{ type nat hook output priority -100;
ip daddr 127.0.0.1 meta l4proto tcp redirect to :{v4}
{v6}}}\n}}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Namespace;

    fn network(bridge: &str, subnet: &str) -> NetworkRules {
        NetworkRules {
            bridge: bridge.into(),
            subnets: vec![subnet.parse().unwrap()],
            internal: false,
            masquerade: true,
        }
    }

    fn publication(host: &str, target: &str) -> Publication {
        Publication { protocol: Protocol::Tcp, host: host.parse().unwrap(), target: target.parse().unwrap() }
    }

    #[test]
    fn publications_go_where_their_address_belongs() {
        for (host, map, element) in [
            ("0.0.0.0:80", "any4", "tcp . 80 : 10.0.0.2 . 8080"),
            ("127.0.0.1:80", "one4", "127.0.0.1 . tcp . 80 : 10.0.0.2 . 8080"),
        ] {
            assert_eq!(map_element(&publication(host, "10.0.0.2:8080")), (map, element.to_owned()));
        }
        assert_eq!(map_element(&publication("[::]:80", "[fd00::2]:8080")).1, "tcp . 80 : fd00::2 . 8080");
    }

    #[test]
    fn the_table_comes_back_after_a_flush() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(space) = Namespace::make(&folder.path().join("ns")) else {
            eprintln!("SKIPPED: no rights for a network namespace");
            return;
        };
        let done = space.run(|| {
            let firewall = Firewall::new("bh_unit".into());
            match firewall.add_network(network("bh-a", "10.0.0.1/24")) {
                Err(error) if error.to_string().contains("install nftables") => {
                    eprintln!("SKIPPED: no nft");
                    return Ok(());
                }
                outcome => outcome?,
            }
            firewall.add_network(network("bh-b", "fd00::/64"))?;
            let ports = [publication("0.0.0.0:80", "10.0.0.2:8080"), publication("[::1]:81", "[fd00::2]:8080")];
            firewall.publish(&ports)?;
            firewall.publish(&ports)?;
            assert!(!firewall.restore()?, "nothing was changed");
            nft::run("flush ruleset\n")?;
            assert!(firewall.restore()?);
            assert!(!firewall.restore()?);
            nft::run("flush chain inet bh_unit through\n")?;
            assert!(firewall.restore()?, "an emptied chain is noticed");
            nft::run("flush ruleset\n")?;
            firewall.unpublish(&ports[..1])?;
            assert!(!firewall.restore()?, "a change puts the table back, too");
            firewall.remove_network("bh-b")?;
            assert!(nft::counts("bh_unit")?.is_some());
            firewall.remove_network("bh-a")?;
            assert_eq!(nft::counts("bh_unit")?, None, "no network, no table");
            // A container that was slow to end takes its ports back now; that brings no table.
            firewall.unpublish(&ports)?;
            assert!(firewall.publish(&ports).is_err());
            assert_eq!(nft::counts("bh_unit")?, None);
            firewall.unload()?;
            firewall.unload()
        });
        Namespace::remove(space.path()).unwrap();
        done.unwrap();
    }
}
