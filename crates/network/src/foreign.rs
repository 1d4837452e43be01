//! A namespace that somebody else has made and furnished, as CNI's plugins do, taken over for a utility VM.
//!
//! ```text
//!  before:  veth eth0: MAC, addresses, routes
//!  during:  veth eth0, another MAC ── bridge br0 (its alias says what was) ── tap nic0 ══ guest: MAC, addresses, routes
//! ```
//!
//! Addresses and routes stay where they are, for whoever looks after them; the guard keeps the namespace itself from using
//! them. What the guest's protocol cannot carry is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use proto::network::{NETWORK_SLOTS, NetworkRates, SandboxInterface, SandboxNetwork, SandboxRoute};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::dns::ADDRESS;
use crate::error::NetworkError;
use crate::firewall::guard;
use crate::link::{alias_of, delete_link, name_of};
use crate::namespace::Namespace;
use crate::netlink::talk;
use crate::sandbox::tie;

/// Begins the alias of a bridge that ties a link which was taken over; then come its name and its own hardware address.
const MARK: &str = "bulkhead-guest ";

/// What an IPv6 route has that was given no metric. Source: Linux include/uapi/linux/ipv6_route.h, `IP6_RT_PRIO_USER`.
const KERNELS_METRIC6: u32 = 1024;

/// A link as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    index: u32,
    name: String,
    mac: [u8; 6],
    mtu: u32,
    is_veth: bool,
}

fn refused(what: impl Into<String>) -> NetworkError {
    NetworkError::Unsuitable(what.into())
}

/// Ties the links that are found in a namespace to bridges, for a utility VM, which gets what they have; none when there is
/// no link. What an earlier VM left there is given back first. Shape: taps are tied by [`crate::connect_tap`].
///
/// # Errors
/// `Unsuitable` for what a guest cannot have, before anything was changed; what the kernel says, with nothing left changed.
pub fn take_over(namespace: &Namespace) -> Result<Option<SandboxNetwork>, NetworkError> {
    give_back(namespace)?;
    namespace.run(|| {
        let (links, network) = talk(async |handle| look(&handle, namespace).await)?;
        if links.is_empty() {
            return Ok(None);
        }
        let taken = guard::load(&network.interfaces, ADDRESS).and_then(|()| {
            links.iter().zip(&network.interfaces).try_for_each(|(link, interface)| take(link, interface))
        });
        if let Err(error) = taken {
            if let Err(left) = untie_all() {
                tracing::warn!(error = &left as &dyn std::error::Error, "a network stays taken over");
            }
            return Err(error);
        }
        Ok(Some(network))
    })
}

/// Makes a namespace what it was before [`take_over`]. May be repeated; a namespace that is gone needs nothing.
///
/// # Errors
/// What the kernel says.
pub fn give_back(namespace: &Namespace) -> Result<(), NetworkError> {
    if namespace.exists() { namespace.run(untie_all) } else { Ok(()) }
}

fn take(link: &Found, interface: &SandboxInterface) -> Result<(), NetworkError> {
    let mut other = link.mac;
    // Locally administered, and not the guest's: a bridge keeps frames for its own ports' addresses.
    other[0] = (other[0] | 2) ^ 4;
    let alias = format!("{MARK}{} {}", link.name, hex(&link.mac));
    tie(&link.name, other, interface, Some(&alias))?;
    talk(async |handle| {
        let change = LinkUnspec::new_with_index(link.index).address(other.to_vec()).build();
        let changed = handle.link().set(change).execute().await;
        changed.map_err(NetworkError::netlink(format!("give {} another hardware address", link.name)))
    })
}

fn untie_all() -> Result<(), NetworkError> {
    let links: Vec<LinkMessage> = talk(async |handle| {
        handle.link().get().execute().try_collect().await.map_err(NetworkError::netlink("list links"))
    })?;
    let mut any = false;
    for bridge in &links {
        let (Some(name), Some(was)) = (name_of(bridge), alias_of(bridge).and_then(|alias| alias.strip_prefix(MARK)))
        else {
            continue;
        };
        any = true;
        if let Some((link, mac)) = was.rsplit_once(' ')
            && let (true, Some(mac)) = (links.iter().any(|other| name_of(other) == Some(link)), unhex(mac))
        {
            talk(async |handle| {
                let change = LinkUnspec::new_with_name(link).nocontroller().address(mac).build();
                let changed = handle.link().set(change).execute().await;
                changed.map_err(NetworkError::netlink(format!("give {link} back what it had")))
            })?;
        }
        delete_link(name)?;
    }
    if any { guard::unload() } else { Ok(()) }
}

async fn look(handle: &Handle, namespace: &Namespace) -> Result<(Vec<Found>, SandboxNetwork), NetworkError> {
    let listed: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(NetworkError::netlink("list links"))?;
    let mut links: Vec<Found> = listed.iter().filter_map(found).collect();
    links.sort_by_key(|link| (link.name != "eth0", link.index));
    if let Some(other) = links.iter().find(|link| !link.is_veth) {
        return Err(refused(format!("{} is no veth", other.name)));
    }
    if links.len() > usize::try_from(NETWORK_SLOTS).unwrap_or(usize::MAX) {
        return Err(refused(format!("more than {NETWORK_SLOTS} interfaces")));
    }
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.map_err(NetworkError::netlink("list addresses"))?;
    let mut network = SandboxNetwork {
        namespace: namespace.path().to_owned(),
        interfaces: Vec::new(),
        gateway4: None,
        gateway6: None,
        routes: Vec::new(),
    };
    for (slot, link) in (0..).zip(&links) {
        network.interfaces.push(interface(slot, link, &addresses)?);
    }
    let mut routes: Vec<RouteMessage> = Vec::new();
    let requests = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for request in requests {
        let listed = handle.route().get(request).execute().try_collect::<Vec<_>>().await;
        routes.extend(listed.map_err(NetworkError::netlink("list routes"))?);
    }
    for (interface, link) in network.interfaces.iter_mut().zip(&links) {
        if let Some((address, prefix)) = &mut interface.ipv4
            && !has_neighbours(&routes, link.index, ((*address).into(), *prefix))
        {
            *prefix = 32;
        }
        if let Some((address, prefix)) = &mut interface.ipv6
            && !has_neighbours(&routes, link.index, ((*address).into(), *prefix))
        {
            *prefix = 128;
        }
    }
    for route in &routes {
        add_route(&mut network, &links, route)?;
    }
    Ok((links, network))
}

/// None for the loopback device and what is no network interface.
fn found(link: &LinkMessage) -> Option<Found> {
    let name = name_of(link)?;
    if link.header.link_layer_type != LinkLayerType::Ether {
        return None;
    }
    let mut found = Found { index: link.header.index, name: name.to_owned(), mac: [0; 6], mtu: 1500, is_veth: false };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(mac) => found.mac = mac.as_slice().try_into().ok()?,
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => found.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    Some(found)
}

fn interface(slot: u32, link: &Found, addresses: &[AddressMessage]) -> Result<SandboxInterface, NetworkError> {
    // CNI's plugin for bandwidth limits the other end of the veth, which all frames pass.
    let rates = NetworkRates::default();
    let mut interface =
        SandboxInterface { slot, mac: link.mac, mtu: Some(link.mtu), ipv4: None, ipv6: None, names: false, rates };
    let own = addresses
        .iter()
        .filter(|address| address.header.index == link.index && address.header.scope == AddressScope::Universe);
    for address in own {
        // That of a point-to-point link is its far end's, which has a route.
        let is_far = far_end(address).is_some_and(|far| Some(far) != local(address));
        let prefix = match (is_far, local(address)) {
            (true, Some(IpAddr::V4(_))) => 32,
            (true, _) => 128,
            (false, _) => address.header.prefix_len,
        };
        let second = match local(address) {
            Some(IpAddr::V4(address)) => interface.ipv4.replace((address, prefix)).is_some(),
            Some(IpAddr::V6(address)) => interface.ipv6.replace((address, prefix)).is_some(),
            None => false,
        };
        if second {
            return Err(refused(format!("{} has more than one address of a family", link.name)));
        }
    }
    Ok(interface)
}

fn local(address: &AddressMessage) -> Option<IpAddr> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| address.attributes.iter().find_map(wanted);
    // Where both are, the other one is a point-to-point link's far end.
    of(|attribute| if let AddressAttribute::Local(ip) = attribute { Some(*ip) } else { None })
        .or_else(|| of(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None }))
}

fn far_end(address: &AddressMessage) -> Option<IpAddr> {
    address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    })
}

/// A route is taken as it is, but for those that come with an address and come by themselves in the guest, too.
fn add_route(network: &mut SandboxNetwork, links: &[Found], route: &RouteMessage) -> Result<(), NetworkError> {
    let header = &route.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind == RouteType::Multicast {
        return Ok(());
    }
    let address = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
        route.attributes.iter().find_map(wanted).and_then(|address| match address {
            RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
            RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        })
    };
    let number = |wanted: fn(&RouteAttribute) -> Option<u32>| route.attributes.iter().find_map(wanted);
    let to = address(|attribute| if let RouteAttribute::Destination(to) = attribute { Some(to) } else { None });
    let by = address(|attribute| if let RouteAttribute::Gateway(by) = attribute { Some(by) } else { None });
    let source = address(|attribute| if let RouteAttribute::PrefSource(from) = attribute { Some(from) } else { None });
    let link = number(|attribute| if let RouteAttribute::Oif(link) = attribute { Some(*link) } else { None });
    let metric =
        number(|attribute| if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None });
    let is_v4 = header.address_family == AddressFamily::Inet;
    let all = if is_v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (target, prefix) = (to.unwrap_or(all), header.destination_prefix_length);
    let found = (0..).zip(links).find(|(_, found)| Some(found.index) == link);
    let interface = found.and_then(|(slot, _)| network.interfaces.iter().find(|interface| interface.slot == slot));
    let refuse = || {
        let to = to.map_or("default".to_owned(), |to| format!("{to}/{prefix}"));
        refused(format!("the route {to}{}", by.map_or(String::new(), |by| format!(" by {by}"))))
    };
    let Some(interface) = interface.filter(|_| header.kind == RouteType::Unicast) else { return Err(refuse()) };
    if source.is_some_and(|source| !own(interface).any(|(own, _)| own == source)) {
        return Err(refuse());
    }
    let is_own = IpNet::new(target, prefix).is_ok_and(|net| own_subnets(interface).any(|own| own == net));
    let is_link_local = matches!(target, IpAddr::V6(to) if to.is_unicast_link_local());
    if by.is_none() && (is_own || is_link_local && header.protocol == RouteProtocol::Kernel) {
        return Ok(());
    }
    // Without the attribute, IPv6 routes have 1024, which is what the guest's kernel takes as well.
    let metric = metric.filter(|&metric| is_v4 || metric != KERNELS_METRIC6).unwrap_or(0);
    let on_link = header.flags.contains(RouteFlags::Onlink);
    network.routes.push(SandboxRoute { slot: interface.slot, to: (target, prefix), gateway: by, on_link, metric });
    Ok(())
}

/// An interface's addresses.
fn own(interface: &SandboxInterface) -> impl Iterator<Item = (IpAddr, u8)> {
    let v4 = interface.ipv4.map(|(address, prefix)| (IpAddr::V4(address), prefix));
    v4.into_iter().chain(interface.ipv6.map(|(address, prefix)| (IpAddr::V6(address), prefix)))
}

fn own_subnets(interface: &SandboxInterface) -> impl Iterator<Item = IpNet> {
    own(interface).filter_map(|(address, prefix)| IpNet::new(address, prefix).ok().map(|net| net.trunc()))
}

/// Whether the neighbours on an interface's subnet are reached without a gateway. Where that route was taken away, as on
/// point-to-point links, the guest must not have it by its address.
fn has_neighbours(routes: &[RouteMessage], link: u32, (address, prefix): (IpAddr, u8)) -> bool {
    let Ok(subnet) = IpNet::new(address, prefix).map(|net| net.trunc()) else { return false };
    routes.iter().any(|route| {
        let to = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
            _ => None,
        });
        let by_gateway = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)));
        route.header.table == RouteHeader::RT_TABLE_MAIN
            && route.attributes.contains(&RouteAttribute::Oif(link))
            && !by_gateway
            && to == Some(subnet.addr())
            && route.header.destination_prefix_length == prefix
    })
}

fn hex(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).concat()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (text.len() == 12).then(|| (0..12).step_by(2).map(digits).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> SandboxNetwork {
        let interface = SandboxInterface {
            slot: 0,
            mac: [2; 6],
            mtu: None,
            ipv4: Some(("10.1.0.2".parse().unwrap(), 24)),
            ipv6: Some(("fd00::2".parse().unwrap(), 64)),
            names: false,
            rates: NetworkRates::default(),
        };
        let (interfaces, routes) = (vec![interface], Vec::new());
        SandboxNetwork { namespace: "/x".into(), interfaces, gateway4: None, gateway6: None, routes }
    }

    fn links() -> [Found; 1] {
        [Found { index: LINK, name: "eth0".into(), mac: [2; 6], mtu: 1500, is_veth: true }]
    }

    const LINK: u32 = 7;

    fn v4() -> RouteMessageBuilder<Ipv4Addr> {
        RouteMessageBuilder::<Ipv4Addr>::new().output_interface(LINK)
    }

    #[test]
    fn routes_are_taken_as_they_are_but_for_those_of_the_addresses() {
        let to = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let own = v4().destination_prefix(to("10.1.0.0"), 24).pref_source(to("10.1.0.2")).build();
        let near = v4().destination_prefix(to("169.254.1.1"), 32).build();
        let mut flagged = v4().destination_prefix(to("10.2.0.0"), 16).gateway(to("172.31.0.1")).build();
        flagged.header.flags = RouteFlags::Onlink;
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(LINK).gateway("fe80::1".parse().unwrap());
        let routes = [own.clone(), near, v4().gateway(to("169.254.1.1")).build(), flagged, v6.priority(1024).build()];
        let mut taken = network();
        routes.iter().for_each(|route| add_route(&mut taken, &links(), route).unwrap());
        let told: Vec<_> =
            taken.routes.iter().map(|route| (route.to, route.gateway, route.on_link, route.metric)).collect();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            told,
            [
                ((address("169.254.1.1"), 32), None, false, 0),
                ((address("0.0.0.0"), 0), Some(address("169.254.1.1")), false, 0),
                ((address("10.2.0.0"), 16), Some(address("172.31.0.1")), true, 0),
                ((address("::"), 0), Some(address("fe80::1")), false, 0),
            ]
        );
        assert!(has_neighbours(std::slice::from_ref(&own), LINK, (address("10.1.0.2"), 24)));
        for (link, prefix) in [(LINK + 1, 24), (LINK, 25)] {
            assert!(!has_neighbours(std::slice::from_ref(&own), link, (address("10.1.0.2"), prefix)));
        }
        // As GKE has it: the subnet by a gateway.
        let by_gateway = v4().destination_prefix(to("10.1.0.0"), 24).gateway(to("10.1.0.1")).build();
        assert!(!has_neighbours(&[by_gateway], LINK, (address("10.1.0.2"), 24)));
    }

    #[test]
    fn what_a_guest_cannot_have_is_told() {
        let to = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let mut hole = v4().destination_prefix(to("10.9.0.0"), 16).build();
        hole.header.kind = RouteType::BlackHole;
        let elsewhere = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(1).gateway(to("10.1.0.1")).build();
        let from = v4().destination_prefix(to("10.3.0.0"), 16).pref_source(to("10.4.0.1")).build();
        for (route, told) in [
            (hole, "the route 10.9.0.0/16"),
            (elsewhere, "the route default by 10.1.0.1"),
            (from, "the route 10.3.0.0/16"),
        ] {
            let error = add_route(&mut network(), &links(), &route).unwrap_err();
            assert!(error.to_string().ends_with(told), "{error}");
            assert_eq!(error.kind(), proto::ErrorKind::NotImplemented);
        }
    }

    #[test]
    fn hardware_addresses_are_kept_in_an_alias() {
        assert_eq!(unhex(&hex(&[2, 0x42, 0, 0xff, 1, 9])), Some(vec![2, 0x42, 0, 0xff, 1, 9]));
        assert_eq!((unhex(""), unhex("02420000010g"), unhex("0242")), (None, None, None));
    }
}
