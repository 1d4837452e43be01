//! Brings bridges back that somebody else has taken away, with what was on them.

use std::sync::Arc;

use super::record::Network;
use super::{Networks, lock};
use crate::error::{ApiResult, chain};

impl Networks {
    /// Brings back what is missing of the bridges that should be there.
    ///
    /// When: in a blocking thread, after a change to the host's links.
    pub fn mend(&self) {
        let up: Vec<String> = lock(&self.up).iter().cloned().collect();
        for network in up.iter().filter_map(|id| self.store.find(id).ok()) {
            if !hostnet::has_link(&network.bridge)
                && let Err(error) = self.bring_back(&network)
            {
                tracing::error!(network = network.name, "cannot bring a bridge back: {error}");
            }
        }
    }

    /// Makes a bridge anew that was there, with its members' links on it.
    pub(super) fn bring_back(&self, network: &Network) -> ApiResult<Arc<Network>> {
        let _changing = lock(&self.changing);
        // Somebody may have been quicker, or taken the network away.
        let missing = lock(&self.up).contains(&network.id) && !hostnet::has_link(&network.bridge);
        if !missing {
            return self.bring_up(network);
        }
        tracing::warn!(
            network = network.name,
            bridge = network.bridge,
            "somebody took a bridge away; it is made again"
        );
        lock(&self.up).remove(&network.id);
        let network = self.bring_up(network).inspect_err(|_| {
            // The next one tries again.
            lock(&self.up).insert(network.id.clone());
        })?;
        for (container, member) in self.store.members(&network.id) {
            let link = &member.endpoint.host_link;
            let put = hostnet::put_on_bridge(link, &network.bridge, !network.connects_neighbours());
            if let Err(error) = put {
                tracing::warn!(container, link, "a container stays off its network: {}", chain(&error));
            }
        }
        Ok(network)
    }
}
