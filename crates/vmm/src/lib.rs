//! One micro-VM on KVM, one process a VM: the library behind the binary `bulkhead-vmm`.
//!
//! Whoever starts that binary (`uvm`) drives it over a socket pair, its standard input, by [`protocol`]. It is trusted; the
//! guest is not. Everything that the process needs comes as an open descriptor.
//!
//! ```text
//!  protocol ── worker ─┬─ machine: memory slots, then interrupt controllers, then processors (the order matters, see there)
//!                      │    ├─ processor, one thread each ── bus ─┬─ ports: serial, reset, power
//!                      │    │                                     └─ virtio transports, one page each
//!                      │    └─ virtio devices: console, block, entropy, network, balloon, file system, socket; their threads do the work
//!                      └─ state: the frozen machine without its memory
//! ```
//!
//! Boot and fork build the same machine; only the source of memory and registers differs.
//!
//! Read first: [`protocol`], `machine.rs`, `virtio/transport.rs`.
#![deny(unsafe_code)]

mod boot;
mod bus;
#[cfg(test)]
mod cases;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz_input;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod jail;
mod layout;
mod machine;
mod memory;
mod ports;
mod processor;
pub mod protocol;
mod state;
mod sys;
mod virtio;
mod worker;

pub use worker::{WorkerError, serve};
