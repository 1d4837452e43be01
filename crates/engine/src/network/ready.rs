//! Namespaces that wait, linked with the default bridge, so that a start does not wait for the kernel to make one.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hostnet::{Namespace, ReadyEnd, ReadySandbox};

use super::record::Network;
use super::{Networks, lock, new_id};
use crate::error::chain;

/// What waits. Shape: none of it has ever been a container's, and whatever becomes of the engine, the kernel takes it away.
pub(super) struct Ready {
    /// How many there should be.
    wanted: usize,
    /// None once the engine ends.
    waiting: Mutex<Option<Vec<ReadySandbox>>>,
    /// A start has asked for one since they were last made.
    asked: AtomicBool,
    making: AtomicBool,
}

impl Ready {
    pub(super) fn new(wanted: usize) -> Self {
        let waiting = Mutex::new(Some(Vec::new()));
        Self { wanted, waiting, asked: AtomicBool::default(), making: AtomicBool::default() }
    }

    /// One that is linked with this network, if it is the default one, bound on `path`; with its link's name.
    pub(super) fn take(&self, network: &Network, path: &Path) -> Option<(Namespace, String)> {
        if !network.is_default_bridge() {
            return None;
        }
        self.asked.store(true, Ordering::SeqCst);
        loop {
            let sandbox = lock(&self.waiting).as_mut()?.pop()?;
            let link = sandbox.end().host_link.clone();
            let taken = match sandbox.is_whole() {
                Ok(true) if sandbox.end().bridge == network.bridge => sandbox.bind(path),
                Ok(_) => {
                    tracing::info!(link, "somebody took away the link of a network namespace that waited");
                    continue;
                }
                Err(error) => Err(error),
            };
            match taken {
                Ok(namespace) => return Some((namespace, link)),
                Err(error) => tracing::warn!("a network namespace that waited is of no use: {}", chain(&error)),
            }
        }
    }

    fn is_short(&self) -> bool {
        lock(&self.waiting).as_ref().is_some_and(|waiting| waiting.len() < self.wanted)
    }

    /// Lets go of all, for good.
    pub(super) fn close(&self) {
        lock(&self.waiting).take();
    }
}

impl Networks {
    /// Makes namespaces for the next starts, if one has asked for them.
    ///
    /// When: in a blocking thread; no start waits for it.
    pub fn make_ready(&self) {
        let ready = &self.ready;
        if !ready.asked.load(Ordering::SeqCst) || ready.making.swap(true, Ordering::SeqCst) {
            return;
        }
        ready.asked.store(false, Ordering::SeqCst);
        while ready.is_short() {
            let made = self.ready_end().map(ReadySandbox::new);
            match made {
                Some(Ok(sandbox)) => {
                    if let Some(waiting) = lock(&ready.waiting).as_mut() {
                        waiting.push(sandbox);
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!("cannot make a network namespace beforehand: {}", chain(&error));
                    break;
                }
                None => break,
            }
        }
        ready.making.store(false, Ordering::SeqCst);
    }

    /// The link of the next one; none while there is no default bridge.
    fn ready_end(&self) -> Option<ReadyEnd> {
        let network = self.store.find("bridge").ok().filter(|network| lock(&self.up).contains(&network.id))?;
        Some(ReadyEnd {
            bridge: network.bridge.clone(),
            host_link: host_link(&new_id().ok()?),
            mtu: network.mtu(),
            isolated: !network.connects_neighbours(),
            ipv6: network.ipv6,
        })
    }
}

/// Name of the host's end of a link, made of random digits.
pub(super) fn host_link(id: &str) -> String {
    format!("bhv-{}", id.get(..11).unwrap_or_default())
}
