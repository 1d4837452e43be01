//! Container networks on a Linux host: namespaces, bridges and links by netlink, one nftables table, address pools, published
//! ports, names. It knows no container and no image: names, addresses and paths come in.
//!
//! A hyperv container's namespace has no address itself; see [`plug_guest`].
//!
//! ```text
//!  container's namespace          host
//!  eth0 ──────────── veth ─────── bridge (gateway) ── forward, masquerade ──▶ outside
//!  127.0.0.11 ◀── name server     table inet bulkhead-...: dnat of published ports
//!                 (engine's task) proxy for what the kernel does not translate (IPv6 to IPv4, from our own bridges)
//! ```
//!
//! Everything here blocks, but for the tasks of [`dns`] and [`proxy`]. Source: docs/design/0014-networks.md.
#![deny(unsafe_code)]

pub mod dns;
mod error;
mod failpoint;
mod firewall;
mod foreign;
mod host;
mod link;
mod loopback;
mod namespace;
mod netlink;
mod pool;
pub mod proxy;
mod ready;
pub mod resolver;
mod sandbox;
mod watch;

pub use error::NetworkError;
pub use firewall::guard::GuardInWaiting;
pub use firewall::{Firewall, NetworkRules, Protocol, Publication};
pub use foreign::{give_back, take_over};
pub use host::{HostLock, forward_packets};
pub use link::{
    BridgeSpec, Plug, Plugged, delete_link, delete_unmarked_bridge, ensure_bridge, has_link, links_on,
    links_with_alias, plug, put_on_bridge, unplug,
};
pub use loopback::LoopbackListener;
pub use namespace::Namespace;
pub use pool::{Pool, PoolError, first_address, free_subnet, host_networks, overlaps};
pub use ready::{Bound, ReadyEnd, ReadySandbox};
pub use sandbox::{GuestPlug, connect_tap, disconnect_tap, guard_guest, plug_guest, tie_tap, unplug_guest};
pub use watch::LinkWatch;
