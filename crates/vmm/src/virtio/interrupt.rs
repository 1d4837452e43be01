//! A device's one interrupt: which kinds are pending, and the wire to the I/O APIC.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A request was answered. Source: virtio 1.2 §4.2.2, `InterruptStatus`.
const USED: u32 = 1;
/// The configuration, or the need for a reset, has changed.
const CONFIGURATION: u32 = 2;

/// Shared by the device's thread and by processors, which ask and acknowledge while the device is at work.
#[derive(Debug)]
pub(crate) struct Interrupt {
    pending: AtomicU32,
    wire: EventFd,
}

impl Interrupt {
    /// An interrupt with nothing pending.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { pending: AtomicU32::new(0), wire: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)? })
    }

    /// What KVM listens to.
    pub(crate) fn wire(&self) -> &EventFd {
        &self.wire
    }

    /// Says that requests were answered.
    pub(crate) fn used(&self) {
        self.raise(USED);
    }

    /// Says that the device wants to be looked at.
    pub(crate) fn configuration(&self) {
        self.raise(CONFIGURATION);
    }

    /// What is pending.
    pub(crate) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// The driver has seen these.
    pub(crate) fn acknowledge(&self, seen: u32) {
        self.pending.fetch_and(!seen, Ordering::SeqCst);
    }

    /// Sets what is pending: after a fork, or nothing at a reset.
    pub(crate) fn set_pending(&self, pending: u32) {
        self.pending.store(pending & (USED | CONFIGURATION), Ordering::SeqCst);
    }

    fn raise(&self, kind: u32) {
        self.pending.fetch_or(kind, Ordering::SeqCst);
        // It fails only when 2^64 - 2 are counted and not yet read, and then the wire is up anyway.
        let _ = self.wire.write(1);
    }
}
