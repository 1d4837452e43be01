//! What is behind a machine's network slots: a tap each, made before the machine, with the link down. No frame passes until
//! somebody brings that link up, which is for whoever personalized the guest to do.
//!
//! ```text
//!  guest ethN ═ virtio-net "nicN" ── tap nicN in the container's namespace            (the fork of a container)
//!                                └── tap nicN in a namespace of the machine's own      (a template, a VM that stands by)
//! ```
//!
//! A tap rather than one of QEMU's hubs, since only with a tap's header do guest and host leave checksums and segmentation to
//! each other, and that is agreed upon when the driver is bound, in the template. Source: Linux tuntap.rst; virtio 1.2 §5.1.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::CloneFlags;
use proto::network::{NETWORK_SLOTS, tap_name};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// The taps could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the network slots (is there a /dev/net/tun? `modprobe tun` makes it)")]
pub struct NetworkSlotsError(#[source] io::Error);

/// The taps behind one machine's network slots. They go with the last of the machine's process and this.
#[derive(Debug)]
pub struct NetworkSlots {
    taps: Mutex<Vec<OwnedFd>>,
    namespace: OwnedFd,
}

impl NetworkSlots {
    /// Makes the taps in the namespace that is bound on a file, or in a new one that nobody else is in.
    ///
    /// # Errors
    /// [`NetworkSlotsError`]; none is left then.
    pub(crate) async fn open(namespace: Option<PathBuf>) -> Result<Self, NetworkSlotsError> {
        let made = tokio::task::spawn_blocking(move || in_thread(|| make(namespace.as_deref()))).await;
        made.map_err(io::Error::other).flatten().map_err(NetworkSlotsError)
    }

    /// Copies for the machine's process, slot 0 first.
    pub(crate) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.taps().iter().map(OwnedFd::try_clone).collect()
    }

    /// Closes the taps beside everything else: the kernel takes some 20 ms for each. When: the machine has ended, and nobody makes
    /// taps of the same names in their namespace any more; within the runtime.
    pub fn close_later(&self) {
        let taps = std::mem::take(&mut *self.taps());
        tokio::task::spawn_blocking(move || drop(taps));
    }

    fn taps(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        // Every change is a single step.
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace in which the taps were made.
    #[must_use]
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn make(namespace: Option<&Path>) -> io::Result<NetworkSlots> {
    match namespace {
        Some(path) => move_into_link_name_space(File::open(path)?.as_fd(), Some(LinkNameSpaceType::Network))?,
        None => nix::sched::unshare(CloneFlags::CLONE_NEWNET)?,
    }
    let taps = (0..NETWORK_SLOTS).map(|slot| sys::open_tap(&tap_name(slot))).collect::<io::Result<Vec<_>>>()?;
    Ok(NetworkSlots { taps: Mutex::new(taps), namespace: File::open("/proc/thread-self/ns/net")?.into() })
}

/// A thread that has entered another namespace is of no use afterwards.
fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
