//! The way between a network and a utility VM, in the container's namespace.
//!
//! ```text
//!  host                    container's namespace                              utility VM
//!  bridge ── veth host_link ═ veth ethN ── bridge brN ── tap nicN ════════════ ethN: MAC, addresses, routes
//!                             no address    127.0.0.11: name server
//! ```
//!
//! The veth has no address, and another hardware address than the guest: a bridge keeps frames for its own ports' addresses.
//! The tap is made by whoever starts the VM, with its link down, and may come from another namespace.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use proto::network::{SandboxInterface, bridge_name, tap_name};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkBridge, LinkUnspec, RouteMessageBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::dns::ADDRESS;
use crate::error::NetworkError;
use crate::firewall::guard;
use crate::link::{Plug, delete_link, find, index_of, plug};
use crate::namespace::{Namespace, in_thread};
use crate::netlink::{answer, set_sysctl, talk};

/// One end on a network's bridge, the other for a utility VM.
#[derive(Debug, Clone)]
pub struct GuestPlug<'a> {
    /// Name of the network's bridge.
    pub bridge: String,
    /// Name of the end on the bridge, at most 15 bytes.
    pub host_link: String,
    /// Ports that are isolated reach the bridge and what is beyond, not each other.
    pub isolated: bool,
    /// The link is there, by [`crate::ReadySandbox`], for slot 0.
    pub ready: bool,
    /// What the guest has.
    pub interface: &'a SandboxInterface,
}

/// Makes the way up to the tap, which is not there yet. Nothing passes it before [`guard_guest`]. What is left of a way that could not
/// be taken away gives place.
///
/// # Errors
/// What the kernel says; nothing stays.
pub fn plug_guest(namespace: &Namespace, wanted: &GuestPlug<'_>) -> Result<(), NetworkError> {
    make_way(namespace, wanted).or_else(|error| {
        if !error.is_there_already() {
            return Err(error);
        }
        clear_slot(namespace, wanted.interface.slot)?;
        make_way(namespace, wanted)
    })
}

fn make_way(namespace: &Namespace, wanted: &GuestPlug<'_>) -> Result<(), NetworkError> {
    let interface = wanted.interface;
    let mut mac = interface.mac;
    // Locally administered, and not the guest's.
    mac[0] = (mac[0] | 2) ^ 4;
    let end = Plug {
        bridge: wanted.bridge.clone(),
        host_link: wanted.host_link.clone(),
        name: Some(format!("eth{}", interface.slot)),
        mac,
        mtu: interface.mtu,
        ipv4: None,
        ipv6: None,
        link_local: Vec::new(),
        isolated: wanted.isolated,
        ready: wanted.ready,
    };
    let plugged = plug(namespace, &end)?;
    let tied = namespace.run(|| tie(&plugged.name, mac, interface, None));
    tied.inspect_err(|_| {
        if let Err(error) = unplug_guest(namespace, interface.slot, &wanted.host_link) {
            tracing::warn!(link = wanted.host_link, error = &error as &dyn std::error::Error, "left behind");
        }
    })
}

fn clear_slot(namespace: &Namespace, slot: u32) -> Result<(), NetworkError> {
    namespace.run(|| [format!("eth{slot}"), bridge_name(slot)].iter().try_for_each(|link| delete_link(link)))
}

/// In the namespace: the bridge, with the veth on it and the name server's way to the guest.
pub(crate) fn tie(
    veth: &str,
    mac: [u8; 6],
    interface: &SandboxInterface,
    alias: Option<&str>,
) -> Result<(), NetworkError> {
    let guest = interface.ipv4.map(|(address, _)| (address, 32));
    tie_slot(interface.slot, veth, mac, guest, alias)
}

/// As [`tie`], for a slot: `guest` are the addresses that are asked from by names.
pub(crate) fn tie_slot(
    slot: u32,
    veth: &str,
    mac: [u8; 6],
    guest: Option<(Ipv4Addr, u8)>,
    alias: Option<&str>,
) -> Result<(), NetworkError> {
    let name = bridge_name(slot);
    // Frames on the bridge are no packets of this namespace's.
    for setting in ["iptables", "ip6tables", "arptables"] {
        set_sysctl(&format!("bridge/bridge-nf-call-{setting}"), "0");
    }
    talk(async |handle| {
        let bridge = LinkBridge::new(&name).mcast_snooping(false).address(mac.to_vec()).up();
        answer(format!("make the bridge {name}"), handle.link().add(bridge.build()).execute()).await?;
        let index = index_of(&handle, &name).await?;
        if let Some(alias) = alias {
            // The kernel takes no alias from the request that makes a link.
            let marked = LinkUnspec::new_with_index(index).alias(alias).build();
            answer(format!("mark the bridge {name}"), handle.link().set(marked).execute()).await?;
        }
        set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
        set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
        set_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        let veth = LinkUnspec::new_with_name(veth).controller(index).build();
        answer(format!("tie a link to {name}"), handle.link().set(veth).execute()).await?;
        if let Some((address, prefix)) = guest {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, prefix);
            let route = route.scope(RouteScope::Link).output_interface(index).build();
            answer(format!("find the guest by {name}"), handle.route().add(route).replace().execute()).await?;
        }
        Ok(())
    })
}

/// Ties a tap to its slot's bridge, and leaves it off. When: the VM is not a container's yet.
///
/// # Errors
/// What the kernel says.
pub fn tie_tap(namespace: &Namespace, slot: u32) -> Result<(), NetworkError> {
    let tap = tap_name(slot);
    namespace.run(|| {
        be_silent(&tap);
        talk(async |handle| {
            let bridge = index_of(&handle, &bridge_name(slot)).await?;
            let change = LinkUnspec::new_with_name(&tap).controller(bridge).build();
            answer(format!("tie the tap {tap}"), handle.link().set(change).execute()).await
        })
    })
}

/// Takes the way of a slot away, up to the tap.
///
/// # Errors
/// What the kernel says.
pub fn unplug_guest(namespace: &Namespace, slot: u32, host_link: &str) -> Result<(), NetworkError> {
    let unplugged = delete_link(host_link);
    unplugged.and(namespace.run(|| delete_link(&bridge_name(slot))))
}

/// Lets the guest send what is its own, on these interfaces and no others. Shape: all interfaces of the guest.
///
/// # Errors
/// `Firewall`; the earlier rules hold then.
pub fn guard_guest(namespace: &Namespace, interfaces: &[SandboxInterface]) -> Result<(), NetworkError> {
    namespace.run(|| guard::load(interfaces, ADDRESS))
}

/// Ties a tap to its slot's bridge and switches it on: from now on the guest is on the network. Shape: `from` is where the tap
/// is unless it is in the namespace already, which may be the same.
///
/// When: the guest is personalized.
///
/// # Errors
/// What the kernel says.
pub fn connect_tap(
    namespace: &Namespace,
    interface: &SandboxInterface,
    from: Option<BorrowedFd<'_>>,
) -> Result<(), NetworkError> {
    let tap = tap_name(interface.slot);
    if let Some(from) = from {
        bring(namespace, &tap, from)?;
    }
    namespace.run(|| {
        be_silent(&tap);
        talk(async |handle| {
            let bridge = index_of(&handle, &bridge_name(interface.slot)).await?;
            let mut change = LinkUnspec::new_with_name(&tap).controller(bridge).up();
            if let Some(mtu) = interface.mtu {
                change = change.mtu(mtu);
            }
            answer(format!("switch on the tap {tap}"), handle.link().set(change.build()).execute()).await
        })
    })
}

/// The kernel is to say nothing of its own by a tap: switched on, it would tell the guest which groups of IPv6 it is in, and the guest
/// would be busy with that just when its container is to start.
fn be_silent(tap: &str) {
    set_sysctl(&format!("ipv6/conf/{tap}/disable_ipv6"), "1");
}

/// Fetches a tap, unless it was fetched before, or was made there.
fn bring(namespace: &Namespace, tap: &str, from: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let to = namespace.open()?;
    let number = |of: BorrowedFd<'_>| rustix::fs::fstat(of).map(|found| (found.st_dev, found.st_ino));
    if number(from) == number(to.as_fd()) {
        return Ok(());
    }
    let moved = in_thread(|| {
        move_into_link_name_space(from, Some(LinkNameSpaceType::Network))?;
        Ok(talk(async |handle| {
            if find(&handle, tap).await?.is_none() {
                return Ok(());
            }
            let change = LinkUnspec::new_with_name(tap).setns_by_fd(to.as_fd().as_raw_fd()).build();
            answer(format!("fetch the tap {tap}"), handle.link().set(change).execute()).await
        }))
    });
    moved.map_err(NetworkError::kernel("enter a utility VM's namespace"))?
}

/// Switches a tap off and unties it. One that is not there is none to untie.
///
/// # Errors
/// What the kernel says.
pub fn disconnect_tap(namespace: &Namespace, slot: u32) -> Result<(), NetworkError> {
    let tap = tap_name(slot);
    namespace.run(|| {
        talk(async |handle| {
            if find(&handle, &tap).await?.is_none() {
                return Ok(());
            }
            let change = LinkUnspec::new_with_name(&tap).nocontroller().down().build();
            answer(format!("switch off the tap {tap}"), handle.link().set(change).execute()).await
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use proto::network::NetworkRates;
    use rtnetlink::LinkVeth;

    use super::*;
    use crate::link::{BridgeSpec, ensure_bridge};
    use crate::ready::{ReadyEnd, ReadySandbox};

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
    const ANOTHERS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 77);

    fn interface() -> SandboxInterface {
        SandboxInterface {
            slot: 0,
            mac: [2, 0, 0, 0, 0, 2],
            mtu: Some(1400),
            ipv4: Some((OWN, 24)),
            ipv6: Some(("fd00:9::2".parse().unwrap(), 64)),
            names: true,
            rates: NetworkRates::default(),
        }
    }

    /// What a guest does, in a namespace whose `nic0` is one end of a veth: as good as a tap.
    fn pose_as_guest(guest: &Namespace) -> Result<(), NetworkError> {
        guest.run(|| {
            talk(async |handle| {
                let done = || NetworkError::netlink("pose as a guest");
                let pair = LinkVeth::new("eth0", "nic0").address(interface().mac.to_vec()).up();
                handle.link().add(pair.build()).execute().await.map_err(done())?;
                let index = index_of(&handle, "eth0").await?;
                set_sysctl("ipv4/conf/eth0/route_localnet", "1");
                for address in [OWN, ANOTHERS] {
                    handle.address().add(index, address.into(), 24).execute().await.map_err(done())?;
                }
                let names = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ADDRESS, 32).table_id(255);
                let names = names.scope(RouteScope::Link).output_interface(index).build();
                handle.route().add(names).execute().await.map_err(done())
            })
        })
    }

    fn socket(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
        let socket = namespace.run(|| Ok(UdpSocket::bind(address).unwrap())).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    /// How long something is waited for that should not come.
    const SILENCE: Option<Duration> = Some(Duration::from_millis(300));

    /// A way that is made for the guest.
    fn make_way(guest: &Namespace, outer: &Namespace, sandbox: &Namespace) -> Result<(), NetworkError> {
        let plug = GuestPlug {
            bridge: "bh-g".into(),
            host_link: LINK.into(),
            isolated: false,
            ready: false,
            interface: &interface(),
        };
        outer.run(|| plug_guest(sandbox, &plug))?;
        guard_guest(sandbox, &[interface()])?;
        connect_tap(sandbox, &interface(), Some(guest.open()?.as_fd()))?;
        connect_tap(sandbox, &interface(), Some(guest.open()?.as_fd()))
    }

    /// A way that waited before anything was known of the guest, whose tap was made in it.
    fn take_way(guest: &Namespace, outer: &Namespace, sandbox: &Namespace) -> Result<(), NetworkError> {
        let end = ReadyEnd {
            bridge: "bh-g".into(),
            host_link: LINK.into(),
            mtu: Some(1400),
            isolated: false,
            ipv6: false,
            names: false,
            guest: true,
        };
        let waiting = outer.run(|| ReadySandbox::new(end))?;
        let path = Namespace::at(waiting.path());
        bring(&path, "nic0", guest.open()?.as_fd())?;
        tie_tap(&path, 0)?;
        let neighbour = socket(outer, "10.9.0.1:7".parse().unwrap());
        neighbour.set_read_timeout(SILENCE).unwrap();
        let sends = |text: &str| {
            socket(guest, SocketAddr::from((OWN, 0))).send_to(text.as_bytes(), "10.9.0.1:7").unwrap();
            neighbour.recv(&mut [0; 16]).is_ok()
        };
        assert!(!sends("early"), "a tap that is off");
        let mut bound = outer.run(|| waiting.bind(sandbox.path()))?;
        connect_tap(&bound.namespace, &interface(), Some(sandbox.open()?.as_fd()))?;
        assert!(!sends("nobody's"), "a guest that nobody knows");
        bound.guard.take().unwrap().tell(&[interface()])
    }

    const LINK: &str = "bhv-g";

    type Way = fn(&Namespace, &Namespace, &Namespace) -> Result<(), NetworkError>;

    fn exchange(guest: &Namespace, outer: &Namespace, sandbox: &Namespace, way: Way) -> Result<(), NetworkError> {
        pose_as_guest(guest)?;
        way(guest, outer, sandbox)?;
        let neighbour = socket(outer, "10.9.0.1:7".parse().unwrap());
        let names = socket(sandbox, SocketAddr::from((ADDRESS, 53)));
        let mut buffer = [0; 16];
        // The genuine one first: it finds out whose hardware address to send to.
        for (own, text) in [(OWN, b"genuine"), (ANOTHERS, b"spoofed")] {
            if own == ANOTHERS {
                neighbour.set_read_timeout(SILENCE).unwrap();
                // What waited for the neighbour's hardware address is its own, too.
                while neighbour.recv(&mut buffer).is_ok() {}
            }
            socket(guest, SocketAddr::from((own, 0))).send_to(text, "10.9.0.1:7").unwrap();
            let came = neighbour.recv_from(&mut buffer);
            assert_eq!(came.ok().map(|(_, from)| from.ip()), (own == OWN).then_some(OWN.into()), "{own}");
        }
        let asking = socket(guest, SocketAddr::from((OWN, 0)));
        asking.send_to(b"who", SocketAddr::from((ADDRESS, 53))).unwrap();
        let (_, from) = names.recv_from(&mut buffer).unwrap();
        names.send_to(b"you", from).unwrap();
        assert_eq!(asking.recv(&mut buffer).unwrap(), 3);
        disconnect_tap(sandbox, 0)?;
        disconnect_tap(sandbox, 1)?;
        asking.send_to(b"late", "10.9.0.1:7").unwrap();
        assert!(neighbour.recv(&mut buffer).is_err(), "a tap that is off");
        outer.run(|| unplug_guest(sandbox, 0, LINK))
    }

    #[test]
    fn a_guest_reaches_its_network_and_its_name_server_with_its_own_address() {
        reaches_by(make_way);
    }

    #[test]
    fn a_way_that_waited_lets_nothing_pass_before_its_guest_is_known() {
        reaches_by(take_way);
    }

    fn reaches_by(way: Way) {
        let folder = tempfile::tempdir().unwrap();
        let made: Result<Vec<Namespace>, _> =
            ["outer", "sandbox", "guest"].iter().map(|name| Namespace::make(&folder.path().join(name))).collect();
        let Ok(made) = made else {
            eprintln!("SKIPPED: no rights for a network namespace");
            return;
        };
        let [outer, sandbox, guest] = &made[..] else { unreachable!("three were made") };
        let bridge = BridgeSpec {
            name: "bh-g".into(),
            alias: "mine".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            addresses: vec!["10.9.0.1/24".parse().unwrap()],
            may_exist: false,
        };
        let done = outer.run(|| {
            ensure_bridge(&bridge)?;
            exchange(guest, outer, sandbox, way)
        });
        made.iter().for_each(|space| Namespace::remove(space.path()).unwrap());
        match done {
            Err(NetworkError::Firewall(text)) if text.contains("install nftables") => eprintln!("SKIPPED: no nft"),
            done => done.unwrap(),
        }
    }
}
