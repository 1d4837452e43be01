//! The guest's network: links that the template has, and that wait in a namespace of their own until a fork is told which of
//! them are the container's.
//!
//! ```text
//!   template                    Personalize, ConfigureNetwork
//!   eth0..eth3, bound  ──▶ "spare" namespace ◀──────────▶ the guest's namespace, which is the container's
//! ```
//!
//! Binding a network device takes an emulated fork a tenth of a second, moving one to another namespace next to nothing.

mod netlink;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use proto::ErrorKind;
use proto::gcs::wire::{self, NetworkInterface};

use netlink::{Batch, LinkChange, Refused, Route, Socket};

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
        let this = Self { names, home, home_namespace, spare, spare_namespace, now: wire::Network::new() };
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
        let has =
            |network: &wire::Network, one: &NetworkInterface| network.interfaces.iter().any(|other| same(one, other));
        let leaving: Vec<_> = self.now.interfaces.iter().filter(|old| !has(wanted, old)).collect();
        let coming: Vec<_> = wanted.interfaces.iter().filter(|new| !has(&self.now, new)).collect();
        let mut batch = Batch::default();
        for gateway in [&self.now.gateway4, &self.now.gateway6] {
            let stays = [&wanted.gateway4, &wanted.gateway6].contains(&gateway);
            batch_default(&mut batch, gateway.as_slice(), !stays, Batch::remove_route);
        }
        // A route may have gone with whatever the container did to its interface.
        if let Err(refused) = self.home.carry_out(&batch) {
            tracing::info!("{refused}: {}", refused.source);
        }
        let mut batch = Batch::default();
        leaving.iter().for_each(|old| self.put_away(&mut batch, self.name(old)));
        self.home.carry_out(&batch)?;
        let mut batch = Batch::default();
        for new in &coming {
            let change = LinkChange {
                mac: Some(&new.mac),
                mtu: Some(new.mtu).filter(|&mtu| mtu != 0),
                namespace: Some(self.home_namespace.as_fd()),
                up: false,
            };
            batch.change_link("bring an interface", self.name(new), &change);
        }
        self.spare.carry_out(&batch)?;
        let mut batch = Batch::default();
        for new in &coming {
            self.furnish(&mut batch, new)?;
        }
        for named in wanted.interfaces.iter().filter(|interface| interface.names) {
            self.lead_to_names(&mut batch, named)?;
        }
        for gateway in [&wanted.gateway4, &wanted.gateway6] {
            batch_default(&mut batch, gateway.as_slice(), true, Batch::add_route);
        }
        self.home.carry_out(&batch)?;
        self.now = wanted.clone();
        Ok(())
    }

    fn name(&self, interface: &NetworkInterface) -> &str {
        let slot = usize::try_from(interface.slot).unwrap_or(usize::MAX);
        self.names.get(slot).map_or("", String::as_str)
    }

    /// Settings at once, since they must be there when the link is switched on; the rest into the batch.
    fn furnish(&self, batch: &mut Batch, new: &NetworkInterface) -> Result<(), NetworkError> {
        let name = self.name(new);
        let index = self.index_of(name)?;
        let (v4, v6) = (address(&new.ipv4), address(&new.ipv6));
        if v6.is_some() {
            // Its addresses are given by the host, and no router of the network tells it others.
            for setting in ["accept_dad", "accept_ra"] {
                set(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), "0")?;
            }
        } else {
            set(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        batch.change_link("switch an interface on", name, &LinkChange { up: true, ..LinkChange::default() });
        for (address, prefix) in [(v4, new.ipv4_prefix), (v6, new.ipv6_prefix)] {
            if let Some(address) = address {
                // Checked to be at most 128.
                batch.add_address(index, address, u8::try_from(prefix).unwrap_or(u8::MAX));
            }
        }
        Ok(())
    }

    /// Questions to the name server leave by this interface, whichever they left by before.
    fn lead_to_names(&self, batch: &mut Batch, interface: &NetworkInterface) -> Result<(), NetworkError> {
        let name = self.name(interface);
        set(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")?;
        batch.add_route(Route::OnLink(NAME_SERVER, self.index_of(name)?));
        Ok(())
    }

    fn index_of(&self, name: &str) -> Result<u32, Refused> {
        self.home.index_of(name).map_err(|source| Refused { step: "find an interface", source })
    }
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

    #[test]
    fn a_network_is_checked_before_anything_happens() {
        let check = |change: fn(&mut wire::Network)| {
            let mut network = wire::Network { interfaces: vec![interface()], ..wire::Network::default() };
            change(&mut network);
            check(&network, 4)
        };
        check(|_| ()).unwrap();
        let broken: [fn(&mut wire::Network); 10] = [
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
