//! The protocol of the guest compute service: control calls (ttrpc, generated from `proto/gcs.proto`) and the header by
//! which each yamux substream says what it carries.
//!
//! The host opens every substream and writes a [`StreamHeader`] first. One is [`StreamKind::Control`] and carries ttrpc;
//! the others carry one stdio stream of one process, raw, or what [`StreamKind`] says besides. A substream that is closed for writing is that stream's
//! end of file. Everything from the guest is hostile input: the host takes no path, id or command from it.

mod stream;

/// Generated: messages and the `Guest` service.
#[allow(missing_docs, unused, nonstandard_style, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/gcs.rs"));
}
/// Generated: ttrpc client and server of the `Guest` service.
#[allow(missing_docs, unused, nonstandard_style, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod wire_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/gcs_ttrpc.rs"));
}

/// The generated service names the messages' module after their file.
use wire as gcs;

pub use stream::{CONNECTED, InvalidHeader, LoopbackPort, StreamHeader, StreamKind};

/// Version of the protocol; both sides must have the same one, since guest image and host are built together.
pub const VERSION: u32 = 6;

/// The number of the first process of a VM's one container; execs count from 1. A pod's containers have others.
pub const INIT_PROCESS: u32 = 0;

/// What the guest writes, once, to the unframed port when it has reached the freeze point: it has loaded its modules, knows
/// its slots, and waits for the first byte of yamux. Nothing specific to any container has happened.
pub const READY: &[u8; 16] = b"bulkhead-ready1\n";
