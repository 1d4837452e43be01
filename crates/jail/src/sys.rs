//! The unsafe part: leaving namespaces.
#![allow(unsafe_code)]

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Leaves the host's namespaces of these kinds. Shape: none but `CLONE_NEW*`.
pub(crate) fn leave(kinds: UnshareFlags) -> rustix::io::Result<()> {
    let kinds = kinds & !UnshareFlags::FILES;
    // SAFETY: the table of descriptors, on which the soundness of owned descriptors depends, stays shared: its flag is masked.
    unsafe { unshare_unsafe(kinds) }
}
