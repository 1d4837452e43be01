//! The fixture of the end-to-end tests: a [`TestHost`] with an engine of its own, driven by the real docker CLI.
//!
//! A test says which wall it needs, and gets a host or is skipped, loudly and counted (see [`Need`]):
//!
//! ```no_run
//! use bulkhead_e2e::{TestHost, Wall};
//! let Some(host) = TestHost::start(Wall::Hyperv) else { return };
//! assert_eq!(host.run(&[], &["echo", "hello"]).ok(), "hello");
//! ```
//!
//! When a host is dropped it removes every container, stops its engine by pid, and panics if anything is left: a
//! process, a mount, a cgroup, a loop device, a file.
//!
//! With `BULKHEAD_E2E_REFERENCE=dockerd` the same tests run over Docker's own daemon (process isolation only): that is
//! how the tests themselves are tested. Variables: `BULKHEAD_E2E_BIN` (folder of the binaries, else the build the tests
//! belong to), `BULKHEAD_E2E_BOOT` (guest image), `BULKHEAD_E2E_REQUIRE=1` (a missing need fails), `BULKHEAD_E2E_SKIPS`
//! (folder for the names of skipped tests), `BULKHEAD_E2E_FORKS`, `BULKHEAD_E2E_BULK_MIB`, `BULKHEAD_E2E_FUZZ`, `BULKHEAD_E2E_CLIENTS` (sizes),
//! `BULKHEAD_TEST_PATIENCE` (times the deadlines, for a slow machine), `BULKHEAD_TEST_BACKEND` (the engines' `--backend`, unless a test
//! says another), `BULKHEAD_TEST_ACCELERATOR` (what utility VMs must run on).
#![forbid(unsafe_code)]

pub mod api;
pub mod archive;
mod build;
pub mod debian;
mod docker;
mod engine;
mod host;
mod host_network;
mod leaks;
mod need;
mod patience;
pub mod procfs;
pub mod registry;
mod terminal;
pub mod web;

pub use build::{Build, EngineKind};
pub use docker::{Running, Said};
pub use engine::Engine;
pub use host::{HostOptions, IMAGE, TestHost, Wall};
pub use host_network::HostNetwork;
pub use need::{Need, skip};
pub use patience::eventually;
pub use terminal::Terminal;

/// A number from the environment, such as how many forks a test makes.
#[must_use]
pub fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
