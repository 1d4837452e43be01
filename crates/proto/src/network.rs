//! The network of a hyperv container as engine and shim tell each other of it: a namespace on the host, and what is to be
//! behind each network slot of the utility VM.
//!
//! ```text
//!  the container's namespace, made by the engine                          utility VM
//!  veth ethN ── bridge brN ── tap nicN, the slot's backend (shim) ════════ ethN
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::gcs::wire;

/// Network slots that a utility VM has: so many networks can a hyperv container be on at once.
pub const NETWORK_SLOTS: u32 = 4;

/// What a hyperv container has of networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxNetwork {
    /// The file on which the namespace is bound, as whoever runs with other mounts can open it.
    pub namespace: PathBuf,
    /// One per network.
    pub interfaces: Vec<SandboxInterface>,
    /// Where it sends what is not for neighbours.
    pub gateway4: Option<Ipv4Addr>,
    /// Where it sends what is not for neighbours.
    pub gateway6: Option<Ipv6Addr>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<SandboxRoute>,
}

/// A route of a hyperv container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRoute {
    /// Of the interface by which packets leave.
    pub slot: u32,
    /// Addresses that they are for, by the bits that count; 0 for all of the family.
    pub to: (IpAddr, u8),
    /// Who takes them, of the same family; without one, the addresses are neighbours.
    pub gateway: Option<IpAddr>,
    /// The gateway is a neighbour though no route says so.
    pub on_link: bool,
    /// Of several the least counts; 0 is the kernel's own choice.
    pub metric: u32,
}

/// One network slot in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxInterface {
    /// Below [`NETWORK_SLOTS`]; also the number in the names of all links that belong to it.
    pub slot: u32,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, if not the kernel's.
    pub mtu: Option<u32>,
    /// Its address and the length of its prefix.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Its address and the length of its prefix.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// The engine's name server answers there.
    pub names: bool,
    /// How fast it may be.
    #[serde(default)]
    pub rates: NetworkRates,
}

/// How fast frames may pass an interface, each a second; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkRates {
    /// Bytes to the container.
    pub receive_bytes: Option<NonZeroU64>,
    /// Bytes from the container.
    pub send_bytes: Option<NonZeroU64>,
    /// Frames to the container.
    pub receive_frames: Option<NonZeroU64>,
    /// Frames from the container.
    pub send_frames: Option<NonZeroU64>,
}

/// A change to the network of a container that runs. The engine sends it as JSON in the `resources` of containerd's `Update`
/// call, with [`NetworkUpdate::TYPE_URL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// All of it as it is to be.
    pub network: SandboxNetwork,
    /// Files of names below /etc with their new texts, such as `hosts`.
    pub files: BTreeMap<String, String>,
}

impl NetworkUpdate {
    /// The `type_url` under which the JSON of this struct travels.
    pub const TYPE_URL: &'static str = "dev.bulkhead.NetworkUpdate";
}

/// Name of the tap that is a slot's backend, in whichever namespace it is.
#[must_use]
pub fn tap_name(slot: u32) -> String {
    format!("nic{slot}")
}

/// Name of the bridge in the container's namespace that ties a slot's tap to its veth.
#[must_use]
pub fn bridge_name(slot: u32) -> String {
    format!("br{slot}")
}

impl SandboxNetwork {
    /// The part that the guest is to know.
    #[must_use]
    pub fn for_guest(&self) -> wire::Network {
        let mut network = wire::Network::new();
        network.interfaces = self.interfaces.iter().map(SandboxInterface::for_guest).collect();
        network.gateway4 = self.gateway4.map_or_else(Vec::new, |gateway| gateway.octets().to_vec());
        network.gateway6 = self.gateway6.map_or_else(Vec::new, |gateway| gateway.octets().to_vec());
        network.routes = self.routes.iter().map(SandboxRoute::for_guest).collect();
        network
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

impl SandboxRoute {
    fn for_guest(&self) -> wire::NetworkRoute {
        let mut route = wire::NetworkRoute::new();
        route.slot = self.slot;
        route.to = bytes(self.to.0);
        route.prefix = self.to.1.into();
        route.gateway = self.gateway.map_or_else(Vec::new, bytes);
        route.on_link = self.on_link;
        route.metric = self.metric;
        route
    }
}

impl SandboxInterface {
    fn for_guest(&self) -> wire::NetworkInterface {
        let mut interface = wire::NetworkInterface::new();
        interface.slot = self.slot;
        interface.mac = self.mac.to_vec();
        interface.mtu = self.mtu.unwrap_or(0);
        if let Some((address, prefix)) = self.ipv4 {
            interface.ipv4 = address.octets().to_vec();
            interface.ipv4_prefix = prefix.into();
        }
        if let Some((address, prefix)) = self.ipv6 {
            interface.ipv6 = address.octets().to_vec();
            interface.ipv6_prefix = prefix.into();
        }
        interface.names = self.names;
        interface
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_addresses_as_bytes_and_nothing_of_the_host() {
        let interface = SandboxInterface {
            slot: 1,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            ipv4: Some((Ipv4Addr::new(10, 0, 0, 2), 24)),
            ipv6: None,
            names: true,
            rates: NetworkRates::default(),
        };
        let network = SandboxNetwork {
            namespace: "/run/x".into(),
            interfaces: vec![interface],
            gateway4: Some(Ipv4Addr::new(10, 0, 0, 1)),
            gateway6: None,
            routes: vec![SandboxRoute {
                slot: 1,
                to: ("10.2.0.0".parse().unwrap(), 16),
                gateway: Some("169.254.1.1".parse().unwrap()),
                on_link: true,
                metric: 0,
            }],
        };
        let told = network.for_guest();
        let route = &told.routes[0];
        assert_eq!((route.to.as_slice(), route.prefix, route.gateway.len()), (&[10, 2, 0, 0][..], 16, 4));
        assert_eq!((told.gateway4.as_slice(), told.gateway6.len()), (&[10, 0, 0, 1][..], 0));
        let told = &told.interfaces[0];
        assert_eq!((told.slot, told.ipv4.as_slice(), told.ipv4_prefix), (1, &[10, 0, 0, 2][..], 24));
        assert!(told.ipv6.is_empty() && told.names && told.mtu == 0 && told.mac.len() == 6);
    }
}
