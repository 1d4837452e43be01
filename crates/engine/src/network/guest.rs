//! What the network of a hyperv container is, beyond that of a process container: the utility VM's interfaces have the
//! addresses, and the shim and the guest must be told of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hostnet::{GuardInWaiting, GuestPlug, Namespace};
use proto::Isolation;
use proto::network::{NETWORK_SLOTS, NetworkRates, NetworkUpdate, SandboxInterface, SandboxNetwork};

use super::attach::{AttachRequest, parse_mac};
use super::endpoint::{Endpoints, LiveEndpoint};
use super::rates::rates;
use super::record::Network;
use super::{Networks, host_error};
use crate::error::{ApiError, ApiResult};

/// An interface's slot is the number in its name.
pub(super) fn slot_of(live: &LiveEndpoint) -> Option<u32> {
    live.interface.strip_prefix("eth")?.parse().ok().filter(|&slot| slot < NETWORK_SLOTS)
}

impl Networks {
    /// Makes the way of an endpoint up to the utility VM, which is on the network when the shim has been told.
    pub(super) fn plug_guest(
        &self,
        namespace: &Namespace,
        network: &Network,
        live: &mut LiveEndpoint,
        others: &Endpoints,
        ready: bool,
    ) -> ApiResult<()> {
        if !live.link_local.is_empty() {
            return Err(ApiError::not_implemented("link-local addresses: not supported with isolation hyperv"));
        }
        let taken: Vec<u32> = live_endpoints(others).filter_map(slot_of).collect();
        let slot = (0..NETWORK_SLOTS).find(|slot| !taken.contains(slot)).ok_or_else(|| {
            ApiError::invalid(format!("a hyperv container may be on {NETWORK_SLOTS} networks at most"))
        })?;
        let interface = interface(slot, live, network)?;
        let plug = GuestPlug {
            bridge: network.bridge.clone(),
            host_link: live.host_link.clone(),
            isolated: !network.connects_neighbours(),
            ready,
            interface: &interface,
        };
        hostnet::plug_guest(namespace, &plug).map_err(|error| host_error(&error))?;
        live.interface = format!("eth{slot}");
        Ok(())
    }

    /// Lets the guest send from the addresses that it has by now, and from no others.
    pub(super) fn guard_guest(&self, namespace: &Namespace, id: &str, endpoints: &Endpoints) -> ApiResult<()> {
        let network = self.sandbox_network(id, endpoints)?;
        hostnet::guard_guest(namespace, &network.interfaces).map_err(|error| host_error(&error))
    }

    /// As [`Networks::guard_guest`] by a guard that waited.
    pub(super) fn tell_guard(&self, guard: GuardInWaiting, id: &str, endpoints: &Endpoints) -> ApiResult<()> {
        let network = self.sandbox_network(id, endpoints)?;
        guard.tell(&network.interfaces).map_err(|error| host_error(&error))
    }

    /// What shim and guest are to know of a hyperv container's network.
    ///
    /// # Errors
    /// 500 for a record that cannot be.
    pub fn sandbox_network(&self, id: &str, endpoints: &Endpoints) -> ApiResult<SandboxNetwork> {
        let mut interfaces = Vec::new();
        for endpoint in endpoints.all.values() {
            if let Some((live, slot)) = endpoint.live.as_ref().and_then(|live| Some((live, slot_of(live)?))) {
                let interface = interface(slot, live, &*self.store.find(&endpoint.network_id)?)?;
                let rates = rates(Isolation::Hyperv, &endpoint.asked)?;
                interfaces.push(SandboxInterface { rates, ..interface });
            }
        }
        interfaces.sort_by_key(|interface| interface.slot);
        // The name server is behind all of them; the guest asks it by the first.
        let asked = interfaces.iter_mut().find(|interface| interface.ipv4.is_some());
        if let Some(interface) = asked.filter(|_| self.is_named(endpoints)) {
            interface.names = true;
        }
        let way_out = endpoints.way_out().and_then(|(_, endpoint)| endpoint.live.as_ref());
        Ok(SandboxNetwork {
            namespace: as_engine_sees(&self.namespace_path(id)),
            interfaces,
            gateway4: way_out.and_then(|live| live.gateway4),
            gateway6: way_out.and_then(|live| live.gateway6),
            routes: Vec::new(),
        })
    }

    /// The change by which a guest learns what became of its network.
    ///
    /// # Errors
    /// 500 for files that cannot be read.
    pub fn guest_update(&self, request: &AttachRequest<'_>, endpoints: &Endpoints) -> ApiResult<NetworkUpdate> {
        let mut files = BTreeMap::new();
        for name in ["hosts", "resolv.conf"] {
            let text = std::fs::read_to_string(request.dir.join(name))
                .map_err(|error| ApiError::caused(format!("cannot read {name}"), &error))?;
            files.insert(name.to_owned(), text);
        }
        Ok(NetworkUpdate { network: self.sandbox_network(request.id, endpoints)?, files })
    }
}

/// A shim that stood by has mounts of its own since before the namespace was bound.
fn as_engine_sees(path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", std::process::id()));
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn interface(slot: u32, live: &LiveEndpoint, network: &Network) -> ApiResult<SandboxInterface> {
    Ok(SandboxInterface {
        slot,
        mac: parse_mac(&live.mac)?,
        mtu: network.mtu(),
        ipv4: live.ipv4.map(|net| (net.addr(), net.prefix_len())),
        ipv6: live.ipv6.map(|net| (net.addr(), net.prefix_len())),
        names: false,
        rates: NetworkRates::default(),
    })
}

fn live_endpoints(endpoints: &Endpoints) -> impl Iterator<Item = &LiveEndpoint> {
    endpoints.all.values().filter_map(|endpoint| endpoint.live.as_ref())
}
