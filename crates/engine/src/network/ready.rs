//! Namespaces that wait, each linked with a network that was used of late, so that a start does not wait for the kernel to
//! make one.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hostnet::dns::NameSockets;
use hostnet::{Bound, GuardInWaiting, Namespace, ReadyEnd, ReadySandbox};

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
    /// Id of the network of the last hyperv container that was started; none if it had none.
    recent_of_guest: Mutex<Option<String>>,
    making: AtomicBool,
}

/// A namespace that is a container's now.
pub(super) struct Taken {
    pub namespace: Namespace,
    /// Its link with the container's first network, if it has one.
    pub link: Option<ReadyLink>,
    /// Of its name server.
    pub names: Option<NameSockets>,
    /// Of the utility VM that waited with it.
    pub guard: Option<GuardInWaiting>,
}

/// A link that waited.
pub(super) struct ReadyLink {
    /// Name of the host's end.
    pub host_link: String,
    /// It leads up to the tap of a utility VM's slot 0.
    pub reaches_guest: bool,
}

impl Taken {
    /// A namespace that was made for a container, with nothing in it.
    pub(super) fn new(namespace: Namespace) -> Self {
        Self { namespace, link: None, names: None, guard: None }
    }

    /// One that waited, bound on `path`; none if it is of no use any more.
    pub(super) fn bind(sandbox: ReadySandbox, path: &Path) -> Option<Self> {
        let ReadyEnd { host_link, guest, .. } = sandbox.end().clone();
        let bound = match sandbox.is_whole() {
            Ok(true) => sandbox.bind(path),
            Ok(false) => {
                tracing::info!(link = host_link, "somebody took away the link of a network namespace that waited");
                return None;
            }
            Err(error) => Err(error),
        };
        match bound {
            Ok(Bound { namespace, names, guard }) => {
                Some(Self { namespace, link: Some(ReadyLink { host_link, reaches_guest: guest }), names, guard })
            }
            Err(error) => {
                tracing::warn!("a network namespace that waited is of no use: {}", chain(&error));
                None
            }
        }
    }
}

impl Ready {
    pub(super) fn new(wanted: usize) -> Self {
        let waiting = Mutex::new(Some(Vec::new()));
        let (recent, recent_of_guest, making) = Default::default();
        Self { wanted, waiting, recent, recent_of_guest, making }
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
            if let Some(taken) = Taken::bind(sandbox, path) {
                return Some(taken);
            }
        }
    }

    /// Notes what a hyperv container has.
    pub(super) fn note_guest(&self, network: Option<&Network>) {
        *lock(&self.recent_of_guest) = network.map(|network| network.id.clone());
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
                match ReadySandbox::new(end(&network, &id, false)) {
                    Ok(sandbox) => {
                        let mut waiting = lock(&ready.waiting);
                        // Seen to be there while the list is held: a network that goes looks into the list after that.
                        if let Some(waiting) = waiting.as_mut().filter(|_| lock(&self.up).contains(&network.id)) {
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

    /// A namespace for the utility VM that is to stand by, on the network that the last hyperv container had; none if it had
    /// none.
    ///
    /// When: in a blocking thread.
    #[must_use]
    pub fn make_ready_for_guest(&self) -> Option<ReadySandbox> {
        let network = lock(&self.ready.recent_of_guest).clone().and_then(|id| self.store.find(&id).ok())?;
        // A network that goes takes along what is linked with it.
        let _changing = lock(&self.changing);
        if !lock(&self.up).contains(&network.id) {
            return None;
        }
        let id = new_id().ok()?;
        let made = ReadySandbox::new(end(&network, &id, true));
        made.inspect_err(|error| tracing::warn!("cannot link a utility VM beforehand: {}", chain(error))).ok()
    }
}

/// Takes the link away of a namespace that nobody needs.
///
/// When: in a blocking thread.
pub fn let_go(sandbox: &ReadySandbox) {
    // The VM that stood by in it may go on elsewhere, and the namespace with it.
    if let Err(error) = hostnet::unplug(&sandbox.end().host_link) {
        tracing::warn!("a link stays: {}", chain(&error));
    }
}

fn end(network: &Network, id: &str, guest: bool) -> ReadyEnd {
    ReadyEnd {
        bridge: network.bridge.clone(),
        host_link: host_link(id),
        mtu: network.mtu(),
        isolated: !network.connects_neighbours(),
        ipv6: network.ipv6,
        names: network.has_names(),
        guest,
    }
}

/// Name of the host's end of a link, made of random digits.
pub(super) fn host_link(id: &str) -> String {
    format!("{HOST_LINK}{}", id.get(..11).unwrap_or_default())
}

/// True for a name that [`host_link`] may give.
pub(super) fn is_host_link(name: &str) -> bool {
    name.starts_with(HOST_LINK)
}

const HOST_LINK: &str = "bhv-";
