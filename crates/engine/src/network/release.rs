//! Takes containers off their networks. What others could see or want goes at once: names, ports, membership. The links go in
//! the background, since the kernel takes its time for each, and only then their addresses are given back.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex};

use hostnet::Namespace;

use super::endpoint::{Endpoints, PublishedPort};
use super::{Networks, lock};
use crate::error::chain;

/// Containers whose links are going.
#[derive(Default)]
pub(super) struct Leaving {
    containers: Mutex<HashSet<String>>,
    changed: Condvar,
}

impl Leaving {
    fn begin(&self, id: &str) {
        lock(&self.containers).insert(id.to_owned());
    }

    fn end(&self, id: &str) {
        lock(&self.containers).remove(id);
        self.changed.notify_all();
    }

    /// Waits until a container has left.
    pub(super) fn wait_for(&self, id: &str) {
        let left = |containers: &mut HashSet<String>| containers.contains(id);
        drop(self.changed.wait_while(lock(&self.containers), left));
    }

    /// Waits for all that are leaving now; false if there are none.
    pub(super) fn wait_for_all(&self) -> bool {
        let leaving = lock(&self.containers);
        let now = leaving.clone();
        drop(self.changed.wait_while(leaving, |containers| !containers.is_disjoint(&now)));
        !now.is_empty()
    }
}

/// What is still to go of a container that was taken off its networks.
#[must_use]
pub struct Remains {
    id: String,
    sandbox: bool,
    links: Vec<String>,
    /// By network.
    addresses: Vec<(String, Vec<IpAddr>)>,
}

fn told(id: &str, what: &str, outcome: Result<(), hostnet::NetworkError>) {
    if let Err(error) = outcome {
        tracing::warn!(id, "{what}: {}", chain(&error));
    }
}

impl Networks {
    /// Takes a container off its networks: everything that [`Networks::attach`] made. May be repeated.
    ///
    /// When: in a blocking thread; the container does not run.
    pub fn release(&self, id: &str, endpoints: &Endpoints) {
        self.clear(self.part(id, endpoints));
    }

    /// Ends what others see of a container, and frees its ports. [`Networks::clear`] must follow.
    ///
    /// When: in a blocking thread; the container does not run.
    pub fn part(&self, id: &str, endpoints: &Endpoints) -> Remains {
        self.leaving.begin(id);
        if let Some(sandbox) = lock(&self.sandboxes).remove(id) {
            sandbox.end();
        }
        let publications: Vec<_> = endpoints.ports.iter().filter_map(PublishedPort::publication).collect();
        told(id, "published ports stay in the firewall", self.firewall.unpublish(&publications));
        let mut remains =
            Remains { id: id.to_owned(), sandbox: endpoints.sandbox, links: Vec::new(), addresses: Vec::new() };
        for endpoint in endpoints.all.values() {
            let Some(live) = &endpoint.live else { continue };
            if !live.interface.is_empty() {
                remains.links.push(live.host_link.clone());
            }
            if self.store.part(&endpoint.network_id, id) {
                remains.addresses.push((endpoint.network_id.clone(), live.addresses().collect()));
            }
        }
        remains
    }

    /// Removes links and namespace, and gives the addresses back then.
    ///
    /// When: in a blocking thread.
    pub fn clear(&self, remains: Remains) {
        let Remains { id, sandbox, links, addresses } = remains;
        for link in links {
            told(&id, "a link stays", hostnet::unplug(&link));
        }
        for (network, addresses) in addresses {
            self.store.give_back(&network, addresses);
        }
        if sandbox {
            told(&id, "a network namespace stays", Namespace::remove(&self.namespace_path(&id)));
        }
        self.leaving.end(&id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_comes_waits_for_who_leaves() {
        let leaving = Arc::new(Leaving::default());
        assert!(!leaving.wait_for_all());
        leaving.wait_for("a");
        leaving.begin("a");
        let waiting = std::thread::spawn({
            let leaving = Arc::clone(&leaving);
            move || {
                leaving.wait_for("b");
                let all = leaving.wait_for_all();
                leaving.wait_for("a");
                all
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        leaving.end("a");
        assert!(waiting.join().unwrap());
    }
}
