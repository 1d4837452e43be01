//! What the engine asks a shim beside containerd's Task API (ttrpc, generated from `proto/notices.proto`), over the same socket.

/// Generated: messages.
#[allow(missing_docs, unused, nonstandard_style, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/notices.rs"));
}
/// Generated: ttrpc client and server of the `Notices` service.
#[allow(missing_docs, unused, nonstandard_style, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod wire_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/notices_ttrpc.rs"));
}

/// The generated service names the messages' module after their file.
use wire as notices;
