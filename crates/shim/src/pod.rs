//! A pod with isolation hyperv: one utility VM, made with the pod's sandbox and ended with it; its containers come and go in it.
//!
//! The sandbox's task is the VM and no process of its own: network and names are the guest's own, as IPC is, so nothing needs to hold
//! them. Why so: docs/design/0019-containerd.md.
//!
//! Everything from the guest is hostile, and its containers trust each other no more than a pod's do: what each has (its number,
//! its place with two disks, its shares) is kept here, and never looked up by what the guest says.

mod container;
mod ports;
mod sandbox;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::Spec;
use proto::control::UtilityVmRequest;
use proto::{ErrorKind, Status};
use uvm::POD_CONTAINERS;

use crate::hyperv::worker::Worker;
use crate::shares;

pub use container::PodContainer;
pub use sandbox::Sandbox;

/// The VM of a pod, and who has what in it.
pub struct PodVm {
    worker: Arc<Worker>,
    memory_bytes: u64,
    /// The pod's, which are the guest's: they come with its first container.
    settings: HashMap<String, String>,
    /// Counts from 1.
    next_container: AtomicU32,
    taken: Mutex<Taken>,
}

/// What its containers have.
#[derive(Debug, Default)]
struct Taken {
    /// For each place whether somebody has it.
    places: [bool; POD_CONTAINERS as usize],
    shares: usize,
    next_share: u32,
}

impl PodVm {
    fn new(worker: Arc<Worker>, vm: &UtilityVmRequest, spec: &Spec) -> Arc<Self> {
        let memory_bytes = vm.memory_bytes.unwrap_or(UtilityVmRequest::NOMINAL_MEMORY_BYTES);
        let settings = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
        let (next_container, taken) = (AtomicU32::new(1), Mutex::default());
        Arc::new(Self { worker, memory_bytes, settings, next_container, taken })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_container(&self) -> u32 {
        self.next_container.fetch_add(1, Ordering::SeqCst)
    }

    /// Takes a place for a container, and numbers for its shares: `count` says how many, given the first one.
    fn take<T>(self: &Arc<Self>, count: impl FnOnce(u32) -> Result<(T, usize), Status>) -> Result<(T, Berth), Status> {
        let mut taken = self.taken();
        let exhausted = |what: String| Err(Status::new(ErrorKind::ResourceExhausted, what));
        let free = (0..).zip(&taken.places).find(|(_, is_taken)| !**is_taken).map(|(place, _)| place);
        let Some(place) = free else {
            return exhausted(format!("a pod with isolation hyperv has {POD_CONTAINERS} containers at most"));
        };
        let first_share = taken.next_share;
        let (planned, shares) = count(first_share)?;
        if taken.shares + shares > shares::MOST {
            return exhausted(format!("a pod with isolation hyperv has {} mounts at most", shares::MOST));
        }
        taken.set(place, true);
        taken.shares += shares;
        taken.next_share += u32::try_from(shares).unwrap_or(u32::MAX);
        Ok((planned, Berth { pod: Arc::clone(self), place, first_share, shares, is_lost: false }))
    }
}

impl Taken {
    fn set(&mut self, place: u32, is_taken: bool) {
        if let Some(found) = usize::try_from(place).ok().and_then(|place| self.places.get_mut(place)) {
            *found = is_taken;
        }
    }
}

/// A container's place and shares in its pod's VM; given back on drop.
struct Berth {
    pod: Arc<PodVm>,
    place: u32,
    first_share: u32,
    shares: usize,
    /// Nobody knows what is behind its slots, or whether the guest has let go of what was.
    is_lost: bool,
}

impl Berth {
    /// Takes its disks away. A place whose disks do not go is never given to another container.
    async fn clear(&mut self) -> Result<(), Status> {
        let cleared = self.pod.worker.vm.unbind_disks(self.place).await;
        self.is_lost |= cleared.is_err();
        cleared.map_err(|error| Status::from_error(error.kind(), &error))
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        let mut taken = self.pod.taken();
        taken.set(self.place, self.is_lost);
        taken.shares -= self.shares;
    }
}
