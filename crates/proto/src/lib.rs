//! What crosses a process boundary in Bulkhead: identifiers, the isolation of a container, the closed set of error
//! kinds, the protocol between host and guest ([`gcs`]), the files by which the engine hands a container to
//! its shim ([`control`]), and what it asks a shim besides ([`notices`]). It knows no file system, no socket and no process.
//!
//! Read first: [`Isolation`], [`ContainerId`], [`ErrorKind`], [`control::ContainerBundle`], [`gcs::StreamHeader`].
#![forbid(unsafe_code)]

pub mod control;
pub mod files;
pub mod gcs;
mod id;
pub mod ignore;
mod isolation;
mod kernel_paths;
pub mod network;
pub mod notices;
mod process;
mod status;
pub mod vsock;

pub use id::{ContainerId, Digest, ExecId, InvalidId, TemplateId};
pub use isolation::{Isolation, UnknownIsolation};
pub use kernel_paths::{MASKED_PATHS, READ_ONLY_PATHS};
pub use process::ProcessDetails;
pub use status::{ErrorKind, Status};
