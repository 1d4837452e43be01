//! What the name server of one container knows: who else is on its networks.

use std::net::IpAddr;
use std::sync::Arc;

use hostnet::dns::Directory;

use super::record::Network;
use super::store::{Member, NetworkStore};

/// The neighbours of one container.
pub(super) struct Neighbours {
    pub(super) store: Arc<NetworkStore>,
    pub(super) container: String,
}

impl Neighbours {
    /// Networks with names on which the container is, each with its members and with the names that the container alone has
    /// for some of them.
    fn networks(&self) -> impl Iterator<Item = (Arc<Network>, Vec<Member>, Vec<(String, String)>)> {
        let named = self.store.all().into_iter().filter(|network| network.has_names());
        named.filter_map(|network| {
            let members = self.store.members(&network.id);
            let linked = members.get(&self.container)?.endpoint.linked.clone();
            Some((network, members.into_values().collect(), linked))
        })
    }
}

impl Directory for Neighbours {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let mut found: Option<Vec<IpAddr>> = None;
        for (network, members, linked) in self.networks() {
            let name = linked.iter().find(|(alias, _)| alias == name).map_or(name, |(_, meant)| meant.as_str());
            // `web.shop` is web on the network shop.
            let suffix = format!(".{}", network.name.to_lowercase());
            let plain = name.strip_suffix(&suffix).unwrap_or(name);
            let meant = |member: &&Member| member.endpoint.names.iter().any(|known| known == name || known == plain);
            for member in members.iter().filter(meant) {
                found.get_or_insert_default().extend(member.endpoint.addresses());
            }
        }
        found
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        self.networks().find_map(|(network, members, _)| {
            let member = members.iter().find(|member| member.endpoint.addresses().any(|known| known == address))?;
            Some(format!("{}.{}", member.name, network.name))
        })
    }
}
