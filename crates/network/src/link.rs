//! Links by netlink: bridges on the host, one veth per endpoint.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::failpoint;
use crate::namespace::Namespace;
use crate::netlink::{answer, set_sysctl, talk};

/// A bridge as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSpec {
    /// At most 15 bytes.
    pub name: String,
    /// By which its engine knows it again.
    pub alias: String,
    /// Its own hardware address: without one it would change with its ports.
    pub mac: [u8; 6],
    /// Largest packet in bytes, if not the kernel's.
    pub mtu: Option<u32>,
    /// The gateways' addresses.
    pub addresses: Vec<IpNet>,
    /// A bridge that somebody else made serves as well: the user has named it.
    pub may_exist: bool,
}

/// One end in a namespace, the other on a bridge.
#[derive(Debug, Clone)]
pub struct Plug {
    /// Name of the bridge.
    pub bridge: String,
    /// Name of the end on the bridge, at most 15 bytes.
    pub host_link: String,
    /// Name of the end in the namespace; without one, the first `eth` that is free.
    pub name: Option<String>,
    /// Hardware address of the end in the namespace.
    pub mac: [u8; 6],
    /// Largest packet in bytes, if not the kernel's.
    pub mtu: Option<u32>,
    /// Its address.
    pub ipv4: Option<Ipv4Net>,
    /// Its address.
    pub ipv6: Option<Ipv6Net>,
    /// Further addresses, which mean something on this link only.
    pub link_local: Vec<IpNet>,
    /// Ports that are isolated reach the bridge and what is beyond, not each other.
    pub isolated: bool,
    /// The link is there, by [`crate::ReadySandbox`]; what is missing is what only its container can say.
    pub ready: bool,
}

/// An end that was plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Its name in the namespace.
    pub name: String,
}

pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(None),
        Err(error) => Err(NetworkError::netlink(format!("look for the link {name}"))(error)),
    }
}

pub(crate) async fn index_of(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    find(handle, name).await?.map(|link| link.header.index).ok_or_else(|| NetworkError::NoLink(name.to_owned()))
}

fn is(error: &rtnetlink::Error, errno: nix::errno::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

pub(crate) fn alias_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

pub(crate) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// Makes a bridge, or takes the one that an earlier run of the engine has made; afterwards it is as `spec` says, up. True if it
/// was not there.
///
/// # Errors
/// `Taken` when a link of that name is somebody else's; what the kernel says: no bridge is left then that was not there.
pub fn ensure_bridge(spec: &BridgeSpec) -> Result<bool, NetworkError> {
    talk(async |handle| {
        let is_new = match find(&handle, &spec.name).await? {
            Some(link) if spec.may_exist || alias_of(&link) == Some(&spec.alias) => false,
            Some(link) if is_unmarked(&link, spec) => true,
            Some(_) => return Err(NetworkError::Taken(spec.name.clone())),
            None => {
                let mut bridge = LinkBridge::new(&spec.name).address(spec.mac.to_vec());
                if let Some(mtu) = spec.mtu {
                    bridge = bridge.mtu(mtu);
                }
                let made = handle.link().add(bridge.build()).execute();
                answer(format!("make the bridge {}", spec.name), made).await?;
                true
            }
        };
        let furnished = furnish_bridge(&handle, spec, is_new).await;
        if furnished.is_err()
            && is_new
            && let Err(error) = delete(&handle, &spec.name).await
        {
            tracing::warn!(link = spec.name, error = &error as &dyn std::error::Error, "left behind");
        }
        furnished.map(|()| is_new)
    })
}

/// Mark, addresses, up.
async fn furnish_bridge(handle: &Handle, spec: &BridgeSpec, is_new: bool) -> Result<(), NetworkError> {
    let name = &spec.name;
    if is_new {
        // The kernel takes no alias from the request that makes a link.
        let mark = LinkUnspec::new_with_name(name).alias(&spec.alias).build();
        answer(format!("mark the bridge {name}"), handle.link().set(mark).execute()).await?;
    }
    set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0");
    let has_v6 = spec.addresses.iter().any(|address| matches!(address, IpNet::V6(_)));
    set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), if has_v6 { "0" } else { "1" });
    // For packets of 127.0.0.0/8 that a published port has given another target; the firewall lets no others in.
    set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
    let index = index_of(handle, name).await?;
    for address in &spec.addresses {
        let request = handle.address().add(index, address.addr(), address.prefix_len()).replace();
        answer(format!("give {name} the address {address}"), request.execute()).await?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    answer(format!("bring up {name}"), handle.link().set(up).execute()).await
}

/// A bridge that an engine has made which was killed before it could mark it: nobody else has this hardware address.
fn is_unmarked(link: &LinkMessage, spec: &BridgeSpec) -> bool {
    let own = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(mac) if *mac == spec.mac);
    alias_of(link).is_none() && link.attributes.iter().any(own)
}

/// Deletes a bridge that an engine has made and not come to mark.
///
/// # Errors
/// What the kernel says.
pub fn delete_unmarked_bridge(spec: &BridgeSpec) -> Result<(), NetworkError> {
    talk(async |handle| match find(&handle, &spec.name).await? {
        Some(link) if is_unmarked(&link, spec) => delete(&handle, &spec.name).await,
        _ => Ok(()),
    })
}

/// Deletes a link of the host. One that is not there is none to delete.
///
/// # Errors
/// What the kernel says.
pub fn delete_link(name: &str) -> Result<(), NetworkError> {
    talk(async |handle| delete(&handle, name).await)
}

async fn delete(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(link) = find(handle, name).await? else { return Ok(()) };
    let what = format!("delete the link {name}");
    failpoint::step(&what)?;
    match handle.link().del(link.header.index).execute().await {
        Err(error) if !is(&error, nix::errno::Errno::ENODEV) => Err(NetworkError::netlink(what)(error)),
        _ => Ok(()),
    }
}

/// Names of the host's links that carry this alias.
///
/// # Errors
/// What the kernel says.
pub fn links_with_alias(alias: &str) -> Result<Vec<String>, NetworkError> {
    talk(async |handle| {
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.map_err(NetworkError::netlink("list links"))?;
        let ours = links.iter().filter(|link| alias_of(link) == Some(alias));
        Ok(ours.filter_map(|link| name_of(link).map(str::to_owned)).collect())
    })
}

/// Connects a namespace with a bridge: both ends are made where they belong, up, with their addresses.
///
/// # Errors
/// What the kernel says; nothing stays.
pub fn plug(namespace: &Namespace, plug: &Plug) -> Result<Plugged, NetworkError> {
    let name = match &plug.name {
        _ if plug.ready => READY_NAME.to_owned(),
        Some(name) => name.clone(),
        None => namespace.run(|| talk(async |handle| free_name(&handle).await))?,
    };
    let made = if plug.ready { Ok(()) } else { make(&namespace.open()?, plug, &name) };
    made.and_then(|()| namespace.run(|| furnish(&name, plug))).inspect_err(|_| {
        if let Err(error) = delete_link(&plug.host_link) {
            tracing::warn!(link = plug.host_link, error = &error as &dyn std::error::Error, "left behind");
        }
    })?;
    Ok(Plugged { name })
}

/// How the end of a link is called that waits in a namespace.
pub(crate) const READY_NAME: &str = "eth0";

/// Makes the link: one end on the bridge and up, the other in the namespace and down.
pub(crate) fn make(namespace: &File, plug: &Plug, name: &str) -> Result<(), NetworkError> {
    talk(async |handle| {
        let bridge = index_of(&handle, &plug.bridge).await?;
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(name.to_owned())
            .setns_by_fd(namespace.as_raw_fd())
            .address(plug.mac.to_vec());
        let mut veth = LinkVeth::new(&plug.host_link, "").controller(bridge).up();
        if let Some(mtu) = plug.mtu {
            peer = peer.mtu(mtu);
            veth = veth.mtu(mtu);
        }
        let veth = veth.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        answer(format!("make the link {}", plug.host_link), handle.link().add(veth.build()).execute()).await?;
        if plug.isolated {
            let index = index_of(&handle, &plug.host_link).await?;
            let port = LinkBridgePort::new(index).isolated(true).build();
            answer(format!("isolate {}", plug.host_link), handle.link().set_port(port).execute()).await?;
        }
        Ok(())
    })
}

/// True if the namespace of this thread has such a link.
#[must_use]
pub fn has_link(name: &str) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    // Without a socket there is nothing to be said; whoever needs the link will find out.
    socket.is_ok_and(|socket| netdevice::name_to_index(socket, name) != Err(rustix::io::Errno::NODEV))
}

/// Puts a link that lost its bridge on one again, and switches it on.
///
/// # Errors
/// What the kernel says.
pub fn put_on_bridge(link: &str, bridge: &str, isolated: bool) -> Result<(), NetworkError> {
    talk(async |handle| {
        let what = format!("put {link} on {bridge}");
        let (link, bridge) = (index_of(&handle, link).await?, index_of(&handle, bridge).await?);
        let change = LinkUnspec::new_with_index(link).controller(bridge).up().build();
        answer(&what, handle.link().set(change).execute()).await?;
        if isolated {
            let port = LinkBridgePort::new(link).isolated(true).build();
            answer(&what, handle.link().set_port(port).execute()).await?;
        }
        Ok(())
    })
}

/// Names of the links that are on a bridge; none when there is no such bridge.
///
/// # Errors
/// What the kernel says.
pub fn links_on(bridge: &str) -> Result<Vec<String>, NetworkError> {
    talk(async |handle| {
        let Some(bridge) = find(&handle, bridge).await? else { return Ok(Vec::new()) };
        let on = LinkAttribute::Controller(bridge.header.index);
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.map_err(NetworkError::netlink("list links"))?;
        let links = links.iter().filter(|link| link.attributes.contains(&on));
        Ok(links.filter_map(|link| name_of(link).map(str::to_owned)).collect())
    })
}

/// True if a link is on a bridge.
pub(crate) fn is_on(link: &str, bridge: &str) -> Result<bool, NetworkError> {
    talk(async |handle| {
        let (Some(link), Some(bridge)) = (find(&handle, link).await?, find(&handle, bridge).await?) else {
            return Ok(false);
        };
        Ok(link.attributes.contains(&LinkAttribute::Controller(bridge.header.index)))
    })
}

async fn free_name(handle: &Handle) -> Result<String, NetworkError> {
    const MOST: u32 = 256;
    for number in 0..MOST {
        let name = format!("eth{number}");
        if find(handle, &name).await?.is_none() {
            return Ok(name);
        }
    }
    Err(NetworkError::Taken("eth255".into()))
}

/// In the namespace: up, with no address of any kind.
pub(crate) fn switch_on(name: &str) -> Result<(), NetworkError> {
    set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
    talk(async |handle| {
        let up = LinkUnspec::new_with_name(name).up().build();
        answer(format!("bring up {name}"), handle.link().set(up).execute()).await
    })
}

/// In the namespace: addresses, and up. Routes come with [`set_default_routes`].
fn furnish(name: &str, plug: &Plug) -> Result<(), NetworkError> {
    if plug.ipv6.is_none() {
        set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
    } else {
        set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0");
        // The address is ours to give: nobody else has it, and the first packet is not to wait for proof.
        set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
        set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0");
    }
    talk(async |handle| {
        let index = index_of(&handle, name).await?;
        let v4 = plug.ipv4.map(IpNet::V4);
        let v6 = plug.ipv6.map(IpNet::V6);
        for address in [v4, v6].into_iter().flatten().chain(plug.link_local.iter().copied()) {
            let request = handle.address().add(index, address.addr(), address.prefix_len());
            answer(format!("give {name} the address {address}"), request.execute()).await?;
        }
        let mut up = LinkUnspec::new_with_index(index).up();
        if plug.ready {
            up = up.address(plug.mac.to_vec());
        }
        answer(format!("bring up {name}"), handle.link().set(up.build()).execute()).await
    })
}

/// Takes a link of the host away, and with it the other end.
///
/// # Errors
/// What the kernel says.
pub fn unplug(host_link: &str) -> Result<(), NetworkError> {
    delete_link(host_link)
}

impl Namespace {
    /// Makes these the namespace's default routes, in place of others.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_default_routes(&self, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Result<(), NetworkError> {
        self.run(|| {
            talk(async |handle| {
                if let Some(gateway) = ipv4 {
                    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
                    answer(format!("route by {gateway}"), handle.route().add(route).replace().execute()).await?;
                }
                if let Some(gateway) = ipv6 {
                    let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build();
                    answer(format!("route by {gateway}"), handle.route().add(route).replace().execute()).await?;
                }
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a namespace of the test's own, so that nothing of the machine's is touched; `None` without the rights.
    fn alone<T: Send>(work: impl FnOnce(&std::path::Path) -> T + Send) -> Option<T> {
        let folder = tempfile::tempdir().unwrap();
        let outer = match Namespace::make(&folder.path().join("outer")) {
            Ok(outer) => outer,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        let done = outer.run(|| Ok(work(folder.path())));
        Namespace::remove(outer.path()).unwrap();
        Some(done.unwrap())
    }

    fn bridge(alias: &str) -> BridgeSpec {
        BridgeSpec {
            name: "bh-test".into(),
            alias: alias.into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(1400),
            addresses: vec!["10.9.0.1/24".parse().unwrap(), "fd00:9::1/64".parse().unwrap()],
            may_exist: false,
        }
    }

    #[test]
    fn two_namespaces_on_a_bridge_reach_each_other() {
        alone(|folder| {
            ensure_bridge(&bridge("mine")).unwrap();
            ensure_bridge(&bridge("mine")).unwrap();
            assert!(matches!(ensure_bridge(&bridge("another's")), Err(NetworkError::Taken(_))));
            assert_eq!(links_with_alias("mine").unwrap(), ["bh-test"]);
            let spaces: Vec<Namespace> = [2, 3]
                .map(|number: u8| {
                    let space = Namespace::make(&folder.join(number.to_string())).unwrap();
                    let end = Plug {
                        bridge: "bh-test".into(),
                        host_link: format!("bhv{number}"),
                        name: None,
                        mac: [2, 0, 0, 0, 0, number],
                        mtu: None,
                        ipv4: Some(format!("10.9.0.{number}/24").parse().unwrap()),
                        ipv6: Some(format!("fd00:9::{number}/64").parse().unwrap()),
                        link_local: Vec::new(),
                        isolated: false,
                        ready: false,
                    };
                    assert_eq!(plug(&space, &end).unwrap().name, "eth0");
                    let gateways = (Some("10.9.0.1".parse().unwrap()), Some("fd00:9::1".parse().unwrap()));
                    space.set_default_routes(gateways.0, gateways.1).unwrap();
                    space
                })
                .into();
            for (address, size) in [("10.9.0.3:7", 5), ("[fd00:9::3]:7", 6)] {
                let to: std::net::SocketAddr = address.parse().unwrap();
                let listen = |kind: &str| format!("{kind}:7").parse::<std::net::SocketAddr>().unwrap();
                let local = if to.is_ipv4() { listen("0.0.0.0") } else { listen("[::]") };
                let socket = spaces[1].run(|| Ok(std::net::UdpSocket::bind(local).unwrap())).unwrap();
                socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
                let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let sender = spaces[0].run(|| Ok(std::net::UdpSocket::bind(local).unwrap())).unwrap();
                sender.send_to(&vec![1; size], to).unwrap();
                assert_eq!(socket.recv(&mut [0; 16]).unwrap(), size, "{address}");
            }
            unplug("bhv2").unwrap();
            unplug("bhv2").unwrap();
            spaces.iter().for_each(|space| Namespace::remove(space.path()).unwrap());
            delete_link("bh-test").unwrap();
            assert!(links_with_alias("mine").unwrap().is_empty());
        });
    }
}
