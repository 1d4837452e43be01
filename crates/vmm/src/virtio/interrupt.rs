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

    /// Nothing is pending any more: the driver starts anew.
    pub(crate) fn clear(&self) {
        self.pending.store(0, Ordering::SeqCst);
    }

    /// Sets what was pending when the machine was frozen, and raises the wire again for it: KVM carries a raised wire into
    /// its interrupt controller later, in a thread of its own, so what was frozen may be without it, and the guest would wait
    /// for ever. One interrupt too many finds nothing pending.
    pub(crate) fn restore(&self, pending: u32) {
        let pending = pending & (USED | CONFIGURATION);
        if pending != 0 {
            self.raise(pending);
        }
    }

    fn raise(&self, kind: u32) {
        self.pending.fetch_or(kind, Ordering::SeqCst);
        // It fails only when 2^64 - 2 are counted and not yet read, and then the wire is up anyway.
        let _ = self.wire.write(1);
    }
}
