//! Virtio devices over MMIO. One transport and one queue state machine serve all; a device is a folder with the same parts:
//! its configuration, what it does with a queue's requests, its state, its tests.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2.

pub(crate) mod balloon;
pub(crate) mod block;
pub(crate) mod buffers;
pub(crate) mod console;
pub(crate) mod device;
pub(crate) mod entropy;
pub(crate) mod event_loop;
pub(crate) mod file_system;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod interrupt;
pub(crate) mod network;
pub(crate) mod phase;
pub(crate) mod queue;
mod rate;
pub(crate) mod socket;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transport;
