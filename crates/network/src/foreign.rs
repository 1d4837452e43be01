//! A namespace that somebody else has made and furnished, as CNI's plugins do, taken over for a utility VM.
//!
//! ```text
//!  before:  veth eth0: MAC, addresses, routes
//!  during:  veth eth0, another MAC ── bridge br0 (its alias says what was) ── tap nic0 ══ guest: MAC, addresses, routes
//! ```
//!
//! Addresses and routes stay where they are, for whoever looks after them; the guard keeps the namespace itself from using
//! them. What the guest's protocol cannot carry is refused.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use proto::network::{NETWORK_SLOTS, SandboxInterface, SandboxNetwork};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
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
    };
    for (slot, link) in (0..).zip(&links) {
        network.interfaces.push(interface(slot, link, &addresses)?);
    }
    let requests = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for request in requests {
        let routes: Vec<RouteMessage> =
            handle.route().get(request).execute().try_collect().await.map_err(NetworkError::netlink("list routes"))?;
        for route in &routes {
            add_route(&mut network, route)?;
        }
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
    let mut interface =
        SandboxInterface { slot, mac: link.mac, mtu: Some(link.mtu), ipv4: None, ipv6: None, names: false };
    let own = addresses
        .iter()
        .filter(|address| address.header.index == link.index && address.header.scope == AddressScope::Universe);
    for address in own {
        let prefix = address.header.prefix_len;
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

/// A default route is the guest's, those that come with an address come by themselves.
fn add_route(network: &mut SandboxNetwork, route: &RouteMessage) -> Result<(), NetworkError> {
    let header = &route.header;
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::Kernel
    {
        return Ok(());
    }
    let address = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
        route.attributes.iter().find_map(wanted).and_then(|address| match address {
            RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
            RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        })
    };
    let to = address(|attribute| if let RouteAttribute::Destination(to) = attribute { Some(to) } else { None });
    let by = address(|attribute| if let RouteAttribute::Gateway(by) = attribute { Some(by) } else { None });
    let prefix = header.destination_prefix_length;
    let is_near = by.is_some_and(|by| network.interfaces.iter().any(|interface| reaches(interface, by)));
    match (to, by) {
        (None, Some(IpAddr::V4(by))) if is_near && network.gateway4.is_none() => network.gateway4 = Some(by),
        (None, Some(IpAddr::V6(by))) if is_near && network.gateway6.is_none() => network.gateway6 = Some(by),
        (to, by) => {
            let to = to.map_or("default".to_owned(), |to| format!("{to}/{prefix}"));
            let by = by.map_or(String::new(), |by| format!(" by {by}"));
            return Err(refused(format!("the route {to}{by}")));
        }
    }
    Ok(())
}

fn reaches(interface: &SandboxInterface, address: IpAddr) -> bool {
    let v4 = interface.ipv4.and_then(|(own, prefix)| IpNet::new(own.into(), prefix).ok());
    let v6 = interface.ipv6.and_then(|(own, prefix)| IpNet::new(own.into(), prefix).ok());
    v4.into_iter().chain(v6).any(|net| net.contains(&address))
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
        };
        SandboxNetwork { namespace: "/x".into(), interfaces: vec![interface], gateway4: None, gateway6: None }
    }

    #[test]
    fn routes_that_a_guest_can_have_are_taken_and_others_are_told() {
        let v4 = |to: Option<(&str, u8)>, by: &str| {
            let mut route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(by.parse().unwrap());
            if let Some((to, prefix)) = to {
                route = route.destination_prefix(to.parse().unwrap(), prefix);
            }
            route.build()
        };
        let mut to = network();
        add_route(&mut to, &v4(None, "10.1.0.1")).unwrap();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway("fd00::1".parse().unwrap()).build();
        add_route(&mut to, &v6).unwrap();
        assert_eq!((to.gateway4, to.gateway6), (Some("10.1.0.1".parse().unwrap()), Some("fd00::1".parse().unwrap())));
        for (route, told) in [
            (v4(None, "10.1.0.1"), "the route default by 10.1.0.1"),
            (v4(Some(("10.2.0.0", 16)), "10.1.0.1"), "the route 10.2.0.0/16 by 10.1.0.1"),
        ] {
            assert!(add_route(&mut to, &route).unwrap_err().to_string().ends_with(told));
        }
        let far = add_route(&mut network(), &v4(None, "169.254.1.1")).unwrap_err();
        assert_eq!(far.kind(), proto::ErrorKind::NotImplemented);
    }

    #[test]
    fn hardware_addresses_are_kept_in_an_alias() {
        assert_eq!(unhex(&hex(&[2, 0x42, 0, 0xff, 1, 9])), Some(vec![2, 0x42, 0, 0xff, 1, 9]));
        assert_eq!((unhex(""), unhex("02420000010g"), unhex("0242")), (None, None, None));
    }
}
