//! Namespaces that wait, each linked with a network that was used of late, so that a start does not wait for the kernel to
//! make one.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hostnet::dns::NameSockets;
use hostnet::{Namespace, ReadyEnd, ReadySandbox};

use super::record::Network;
use super::{Networks, lock, new_id};
use crate::error::chain;

/// How many networks have some: who starts on more of them in turn waits for the kernel.
const NETWORKS: usize = 2;

/// What waits. Shape: none of it has ever been a container's, and whatever becomes of the engine, the kernel takes it away.
pub(super) struct Ready {
    /// How many there should be for a network.
    wanted: usize,
    /// None once the engine ends.
    waiting: Mutex<Option<Vec<ReadySandbox>>>,
    /// Ids of the networks that have some, the last one that was used first.
    recent: Mutex<Vec<String>>,
    making: AtomicBool,
}

/// One that is a container's now.
pub(super) struct Taken {
    pub namespace: Namespace,
    /// The host's end of its link.
    pub link: String,
    /// Of the name server of a process container.
    pub names: Option<NameSockets>,
}

impl Ready {
    pub(super) fn new(wanted: usize) -> Self {
        let waiting = Mutex::new(Some(Vec::new()));
        Self { wanted, waiting, recent: Mutex::default(), making: AtomicBool::default() }
    }

    /// One that is linked with this network, bound on `path`.
    pub(super) fn take(&self, network: &Network, path: &Path) -> Option<Taken> {
        {
            let mut recent = lock(&self.recent);
            recent.retain(|id| *id != network.id);
            recent.insert(0, network.id.clone());
            recent.truncate(NETWORKS);
        }
        loop {
            let sandbox = {
                let mut waiting = lock(&self.waiting);
                let waiting = waiting.as_mut()?;
                let at = waiting.iter().position(|sandbox| sandbox.end().bridge == network.bridge)?;
                waiting.swap_remove(at)
            };
            let link = sandbox.end().host_link.clone();
            let bound = match sandbox.is_whole() {
                Ok(true) => sandbox.bind(path),
                Ok(false) => {
                    tracing::info!(link, "somebody took away the link of a network namespace that waited");
                    continue;
                }
                Err(error) => Err(error),
            };
            match bound {
                Ok((namespace, names)) => return Some(Taken { namespace, link, names }),
                Err(error) => tracing::warn!("a network namespace that waited is of no use: {}", chain(&error)),
            }
        }
    }

    /// Lets go of those of a network that goes.
    pub(super) fn forget(&self, network: &Network) {
        lock(&self.recent).retain(|id| *id != network.id);
        if let Some(waiting) = lock(&self.waiting).as_mut() {
            waiting.retain(|sandbox| sandbox.end().bridge != network.bridge);
        }
    }

    fn is_short_of(&self, bridge: &str) -> bool {
        let waiting = lock(&self.waiting);
        let count = |waiting: &Vec<ReadySandbox>| waiting.iter().filter(|one| one.end().bridge == bridge).count();
        waiting.as_ref().is_some_and(|waiting| count(waiting) < self.wanted)
    }

    /// Lets go of all, for good.
    pub(super) fn close(&self) {
        lock(&self.waiting).take();
    }
}

impl Networks {
    /// Makes namespaces for the next starts on the networks that were used of late.
    ///
    /// When: in a blocking thread; no start waits for it.
    pub fn make_ready(&self) {
        let ready = &self.ready;
        if ready.making.swap(true, Ordering::SeqCst) {
            return;
        }
        let networks: Vec<_> = lock(&ready.recent).iter().filter_map(|id| self.store.find(id).ok()).collect();
        if let Some(waiting) = lock(&ready.waiting).as_mut() {
            waiting.retain(|sandbox| networks.iter().any(|network| network.bridge == sandbox.end().bridge));
        }
        for network in networks {
            while lock(&self.up).contains(&network.id) && ready.is_short_of(&network.bridge) {
                let Ok(id) = new_id() else { break };
                match ReadySandbox::new(end(&network, &id)) {
                    Ok(sandbox) => {
                        if let Some(waiting) = lock(&ready.waiting).as_mut() {
                            waiting.push(sandbox);
                        }
                    }
                    Err(error) => {
                        tracing::warn!("cannot make a network namespace beforehand: {}", chain(&error));
                        break;
                    }
                }
            }
        }
        ready.making.store(false, Ordering::SeqCst);
    }
}

fn end(network: &Network, id: &str) -> ReadyEnd {
    ReadyEnd {
        bridge: network.bridge.clone(),
        host_link: host_link(id),
        mtu: network.mtu(),
        isolated: !network.connects_neighbours(),
        ipv6: network.ipv6,
        names: network.has_names(),
    }
}

/// Name of the host's end of a link, made of random digits.
pub(super) fn host_link(id: &str) -> String {
    format!("bhv-{}", id.get(..11).unwrap_or_default())
}
