//! The guest's network: links that the template has, and that wait in a namespace of their own until a fork is told which of
//! them are the container's.
//!
//! ```text
//!   template                    Personalize, ConfigureNetwork
//!   eth0..eth3, bound  ──▶ "spare" namespace ◀──────────▶ the guest's namespace, which is the container's
//!                                                         Renew: what the rehearsal had is parked there, off
//! ```
//!
//! Binding a network device takes an emulated fork a tenth of a second, moving one to another namespace a hundredth.

mod netlink;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use proto::ErrorKind;
use proto::gcs::wire::{self, NetworkInterface, NetworkRoute};

use netlink::{Batch, LinkChange, Refused, Route, RouteTo, Socket};

/// Where the container's name server is: on the other side of an interface, though the address is one of the loopback
/// device's. Source: docs/design/0014-networks.md.
const NAME_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// What Ethernet and the kernel allow. Source: RFC 791; Linux include/uapi/linux/if_ether.h.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// A network that the guest cannot have.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The request breaks the protocol.
    #[error("invalid network: {0}")]
    Invalid(&'static str),
    /// The kernel refused a step.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A setting of an interface.
    #[error("cannot set {path}", path = path.display())]
    Setting {
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Refused(_) | Self::Setting { .. } => ErrorKind::Internal,
        }
    }
}

/// The links of the network slots, and what they are at the moment.
#[derive(Debug)]
pub struct Network {
    /// Links by slot.
    names: Vec<String>,
    home: Socket,
    home_namespace: File,
    spare: Socket,
    spare_namespace: File,
    now: wire::Network,
    /// Links that are in the guest's namespace, off and without an address, and what they had last.
    parked: Vec<NetworkInterface>,
}

impl Network {
    /// Takes the links, in the order of their slots, out of sight.
    ///
    /// When: before the freeze point; the process has one thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn prepare(names: Vec<String>) -> io::Result<Self> {
        let (spare, spare_namespace) = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
                Ok::<_, io::Error>((Socket::open()?, File::open("/proc/thread-self/ns/net")?))
            });
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })?;
        let home = Socket::open()?;
        let home_namespace = File::open("/proc/self/ns/net")?;
        let now = wire::Network::new();
        let this = Self { names, home, home_namespace, spare, spare_namespace, now, parked: Vec::new() };
        let mut batch = Batch::default();
        this.names.iter().for_each(|name| this.put_away(&mut batch, name));
        this.home.carry_out(&batch).map_err(|refused| io::Error::other(format!("{refused}: {}", refused.source)))?;
        Ok(this)
    }

    fn put_away(&self, batch: &mut Batch, name: &str) {
        let change = LinkChange { namespace: Some(self.spare_namespace.as_fd()), ..LinkChange::default() };
        batch.change_link("take an interface away", name, &change);
    }

    /// Makes the network what `wanted` says, whatever it was.
    ///
    /// # Errors
    /// `Invalid` before anything was changed. Otherwise the network is neither the old nor the new one.
    pub fn make(&mut self, wanted: &wire::Network) -> Result<(), NetworkError> {
        check(wanted, self.names.len())?;
        let parked = std::mem::take(&mut self.parked);
        let has = |network: &[NetworkInterface], slot: u32| network.iter().any(|other| other.slot == slot);
        let stays =
            |network: &wire::Network, one: &NetworkInterface| network.interfaces.iter().any(|other| same(one, other));
        let leaving = self.now.interfaces.iter().filter(|old| !stays(wanted, old));
        let leaving = leaving.chain(parked.iter().filter(|old| !has(&wanted.interfaces, old.slot)));
        let coming: Vec<_> = wanted.interfaces.iter().filter(|new| !stays(&self.now, new)).collect();
        self.forget_gateways(wanted);
        let mut batch = Batch::default();
        leaving.for_each(|old| self.put_away(&mut batch, self.name(old)));
        self.home.carry_out(&batch)?;
        let mut batch = Batch::default();
        for new in coming.iter().filter(|new| !has(&parked, new.slot)) {
            let change = LinkChange { namespace: Some(self.home_namespace.as_fd()), ..change_for(new) };
            batch.change_link("bring an interface", self.name(new), &change);
        }
        self.spare.carry_out(&batch)?;
        let mut batch = Batch::default();
        for new in &coming {
            self.furnish(&mut batch, new, parked.iter().find(|old| old.slot == new.slot))?;
        }
        for named in wanted.interfaces.iter().filter(|interface| interface.names) {
            self.lead_to_names(&mut batch, named, &parked)?;
        }
        for gateway in [&wanted.gateway4, &wanted.gateway6] {
            batch_default(&mut batch, gateway.as_slice(), true, Batch::add_route);
        }
        self.add_routes(&mut batch, wanted)?;
        self.home.carry_out(&batch)?;
        self.now = wanted.clone();
        Ok(())
    }

    /// Takes the network away, but leaves its links where they are, switched off: whoever is next probably has the same.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn park(&mut self) -> Result<(), NetworkError> {
        self.forget_gateways(&wire::Network::new());
        let mut batch = Batch::default();
        for old in &self.now.interfaces {
            let index = self.index_of(self.name(old))?;
            for (address, prefix) in addresses(old) {
                batch.remove_address(index, address, prefix);
            }
            batch.change_link(
                "switch an interface off",
                self.name(old),
                &LinkChange { up: Some(false), ..<_>::default() },
            );
        }
        self.home.carry_out(&batch)?;
        self.parked = std::mem::take(&mut self.now).interfaces;
        Ok(())
    }

    fn forget_gateways(&self, wanted: &wire::Network) {
        let mut batch = Batch::default();
        for gateway in [&self.now.gateway4, &self.now.gateway6] {
            let stays = [&wanted.gateway4, &wanted.gateway6].contains(&gateway);
            batch_default(&mut batch, gateway.as_slice(), !stays, Batch::remove_route);
        }
        for route in self.now.routes.iter().filter(|route| !wanted.routes.contains(route)) {
            match self.route(route) {
                Ok(route) => batch.remove_route(route),
                Err(refused) => tracing::info!("{refused}: {}", refused.source),
            }
        }
        // A route may have gone with whatever the container did to its interface.
        if let Err(refused) = self.home.carry_out(&batch) {
            tracing::info!("{refused}: {}", refused.source);
        }
    }

    fn name(&self, interface: &NetworkInterface) -> &str {
        let slot = usize::try_from(interface.slot).unwrap_or(usize::MAX);
        self.names.get(slot).map_or("", String::as_str)
    }

    /// Settings at once, since they must be there when the link is switched on; the rest into the batch. Shape: `parked` is
    /// what the link had when it was parked, if it was.
    fn furnish(
        &self,
        batch: &mut Batch,
        new: &NetworkInterface,
        parked: Option<&NetworkInterface>,
    ) -> Result<(), NetworkError> {
        let name = self.name(new);
        let index = self.index_of(name)?;
        let has_v6 = |interface: &NetworkInterface| !interface.ipv6.is_empty();
        match (has_v6(new), parked.map(has_v6)) {
            (wanted, Some(is)) if wanted == is => {}
            (false, _) => set(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?,
            (true, was) => {
                // Its addresses are given by the host, and no router of the network tells it others.
                for setting in ["accept_dad", "accept_ra"] {
                    set(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), "0")?;
                }
                if was.is_some() {
                    set(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0")?;
                }
            }
        }
        let change = if parked.is_some() { change_for(new) } else { LinkChange::default() };
        batch.change_link("switch an interface on", name, &LinkChange { up: Some(true), ..change });
        for (address, prefix) in addresses(new) {
            batch.add_address(index, address, prefix);
        }
        Ok(())
    }

    /// Questions to the name server leave by this interface, whichever they left by before.
    fn lead_to_names(
        &self,
        batch: &mut Batch,
        interface: &NetworkInterface,
        parked: &[NetworkInterface],
    ) -> Result<(), NetworkError> {
        let name = self.name(interface);
        if !parked.iter().any(|old| old.slot == interface.slot && old.names) {
            set(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")?;
        }
        batch.add_route(Route::OnLink(NAME_SERVER, self.index_of(name)?));
        Ok(())
    }

    /// The neighbours' first: a gateway may be one of them.
    fn add_routes(&self, batch: &mut Batch, wanted: &wire::Network) -> Result<(), Refused> {
        let (far, near): (Vec<_>, Vec<_>) = wanted.routes.iter().partition(|route| !route.gateway.is_empty());
        for route in near.into_iter().chain(far) {
            batch.add_route(self.route(route)?);
        }
        Ok(())
    }

    fn route(&self, route: &NetworkRoute) -> Result<Route, Refused> {
        let slot = usize::try_from(route.slot).unwrap_or(usize::MAX);
        Ok(Route::To(RouteTo {
            // Checked to be an address.
            to: (address(&route.to).unwrap_or(NAME_SERVER), u8::try_from(route.prefix).unwrap_or(u8::MAX)),
            link: self.index_of(self.names.get(slot).map_or("", String::as_str))?,
            gateway: address(&route.gateway),
            on_link: route.on_link,
            metric: route.metric,
        }))
    }

    fn index_of(&self, name: &str) -> Result<u32, Refused> {
        self.home.index_of(name).map_err(|source| Refused { step: "find an interface", source })
    }
}

/// What a link is to have when it is brought to the container.
fn change_for(new: &NetworkInterface) -> LinkChange<'_> {
    LinkChange { mac: Some(&new.mac), mtu: Some(new.mtu).filter(|&mtu| mtu != 0), ..LinkChange::default() }
}

/// An interface's addresses with the lengths of their prefixes, checked to be at most 128.
fn addresses(interface: &NetworkInterface) -> impl Iterator<Item = (IpAddr, u8)> {
    let both = [(&interface.ipv4, interface.ipv4_prefix), (&interface.ipv6, interface.ipv6_prefix)];
    both.into_iter().filter_map(|(bytes, prefix)| Some((address(bytes)?, u8::try_from(prefix).unwrap_or(u8::MAX))))
}

/// Whether an interface can stay as it is. Names may go by another one at any time.
fn same(one: &NetworkInterface, other: &NetworkInterface) -> bool {
    let without_names = |interface: &NetworkInterface| NetworkInterface { names: false, ..interface.clone() };
    without_names(one) == without_names(other)
}

fn batch_default(batch: &mut Batch, gateway: &[u8], wanted: bool, act: fn(&mut Batch, Route)) {
    if let Some(gateway) = address(gateway).filter(|_| wanted) {
        act(batch, Route::Default(gateway));
    }
}

fn set(path: String, value: &str) -> Result<(), NetworkError> {
    std::fs::write(&path, value).map_err(|source| NetworkError::Setting { path: path.into(), source })
}

/// 4 or 16 bytes; anything else is none.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn check(network: &wire::Network, slots: usize) -> Result<(), NetworkError> {
    let of_length = |bytes: &[u8], length: usize| bytes.is_empty() || bytes.len() == length;
    let mut seen = Vec::new();
    for interface in &network.interfaces {
        let slot = usize::try_from(interface.slot).unwrap_or(usize::MAX);
        let claims = [
            (slot < slots, "no such slot"),
            (!seen.contains(&slot), "a slot twice"),
            (interface.mac.len() == 6 && interface.mac[0] & 1 == 0, "no hardware address"),
            (interface.mtu == 0 || MTU.contains(&interface.mtu), "no size of packets"),
            (of_length(&interface.ipv4, 4) && interface.ipv4_prefix <= 32, "no IPv4 address"),
            (of_length(&interface.ipv6, 16) && interface.ipv6_prefix <= 128, "no IPv6 address"),
            (!interface.names || !interface.ipv4.is_empty(), "names without an IPv4 address"),
        ];
        if let Some((_, wrong)) = claims.into_iter().find(|(holds, _)| !holds) {
            return Err(NetworkError::Invalid(wrong));
        }
        seen.push(slot);
    }
    if network.interfaces.iter().filter(|interface| interface.names).count() > 1 {
        return Err(NetworkError::Invalid("names at two interfaces"));
    }
    if !of_length(&network.gateway4, 4) || !of_length(&network.gateway6, 16) {
        return Err(NetworkError::Invalid("no gateway's address"));
    }
    for route in &network.routes {
        let bits = route.to.len() * 8;
        let claims = [
            (network.interfaces.iter().any(|interface| interface.slot == route.slot), "a route by no interface"),
            (address(&route.to).is_some(), "a route to no address"),
            (usize::try_from(route.prefix).is_ok_and(|prefix| prefix <= bits), "a route to no addresses"),
            (of_length(&route.gateway, route.to.len()), "a route by no gateway"),
        ];
        if let Some((_, wrong)) = claims.into_iter().find(|(holds, _)| !holds) {
            return Err(NetworkError::Invalid(wrong));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> NetworkInterface {
        NetworkInterface {
            slot: 1,
            mac: vec![2, 0, 0, 0, 0, 1],
            ipv4: vec![10, 0, 0, 2],
            ipv4_prefix: 24,
            names: true,
            ..NetworkInterface::default()
        }
    }

    fn route() -> NetworkRoute {
        NetworkRoute { slot: 1, to: vec![10, 2, 0, 0], prefix: 16, gateway: vec![169, 254, 1, 1], ..<_>::default() }
    }

    #[test]
    fn a_network_is_checked_before_anything_happens() {
        let check = |change: fn(&mut wire::Network)| {
            let mut network = wire::Network { interfaces: vec![interface()], ..wire::Network::default() };
            change(&mut network);
            check(&network, 4)
        };
        check(|_| ()).unwrap();
        check(|network| network.routes.push(route())).unwrap();
        let broken: [fn(&mut wire::Network); 14] = [
            |network| network.routes.push(NetworkRoute { slot: 2, ..route() }),
            |network| network.routes.push(NetworkRoute { to: vec![10], ..route() }),
            |network| network.routes.push(NetworkRoute { prefix: 33, ..route() }),
            |network| network.routes.push(NetworkRoute { gateway: vec![1; 16], ..route() }),
            |network| network.interfaces[0].slot = 4,
            |network| network.interfaces.push(NetworkInterface { names: false, ..interface() }),
            |network| network.interfaces.push(NetworkInterface { slot: 2, ..interface() }),
            |network| network.interfaces[0].mac[0] = 1,
            |network| network.interfaces[0].mac.clear(),
            |network| network.interfaces[0].mtu = 67,
            |network| network.interfaces[0].ipv4.push(0),
            |network| network.interfaces[0].ipv4_prefix = 33,
            |network| network.interfaces[0].ipv4.clear(),
            |network| network.gateway6 = vec![1; 4],
        ];
        for change in broken {
            assert_eq!(check(change).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn addresses_are_of_two_lengths() {
        assert_eq!(address(&[10, 0, 0, 2]), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(address(&[0; 16]), Some("::".parse().unwrap()));
        assert_eq!((address(&[]), address(&[0; 5])), (None, None));
    }
}
