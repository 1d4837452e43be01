//! One Linux container from an OCI specification, the same way on the host and in a utility VM: namespaces, mounts, cgroups
//! of both versions, capabilities, seccomp, terminals; and the root file system below it ([`rootfs`]).
//!
//! It knows no image, no network and no virtual machine, and no async runtime: its functions block.
//!
//! ```text
//!   caller (threads allowed)                    helper (one thread, one request, then gone)
//!   Container::create  -- request, streams -->  libcontainer: intermediate process, then init
//!                      <-- pid, terminal -----       both are children of the caller
//!   Container::start   -- notify socket ----->  init executes the command, or says why not
//! ```
//!
//! Setting a container up means forking into Rust code, which must never happen in a process with threads. So the program
//! is started again as a [`Helper`]; `main` of every program that uses this crate begins with [`serve_if_helper`].
//!
//! Read first: [`Container`], [`Helper`], [`Stdio`], [`Started`], [`rootfs::mount`].
//!
//! Source: OCI runtime-spec 1.2; docs/design/0001.
#![deny(unsafe_code)]

pub mod archive;
mod cgroup;
mod confine;
mod container;
mod diagnostics;
mod error;
mod exec;
mod executable;
mod failure;
mod first_process;
mod helper;
mod hooks;
mod init;
mod lock;
mod network;
mod plain;
mod processes;
pub mod rootfs;
mod rootpath;
pub mod seccomp;
mod serve;
mod spec;
mod sys;
mod terminal;
mod user;
mod wire;
mod zygote;
mod zygote_process;

use std::io;

pub use cgroup::stats::{BlockStats, CpuStats, MemoryStats, PidsStats, Stats};
pub use cgroup::{CgroupError, OomWatch, remove_cgroup};
pub use container::{Blueprint, Container, PlainBlueprint, Started, Stdio};
pub use error::{CreateError, DeleteError, ExecError, HelperError, LoadError, StartError};
pub use failure::{CommandError, SetupError};
pub use helper::{Helper, serve_if_helper};
pub use hooks::HookError;
pub use plain::Specialization;
pub use spec::{GROUPS_ANNOTATION, INIT_ANNOTATION, SpecError, USER_ANNOTATION};
pub use user::UserError;
pub use wire::WireError;
pub use zygote::{Zygote, ZygoteError};

/// Does ahead what every creation in this process would do: learns what may be passed on to a container, and has the
/// kernel verify the device program of a container without devices of its own. Leaving it out costs time only.
///
/// # Errors
/// `/proc` cannot be read, or the kernel refuses the program.
pub fn prepare() -> io::Result<()> {
    spec::HostLimits::of_this_process()?;
    cgroup::devices::prepare()
}
