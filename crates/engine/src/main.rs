//! `bulkheadd`, the engine: serves the Docker Engine API on unix sockets, keeps the record of every container, and starts
//! one shim per container, which it reaches by containerd's Task API. It links neither hypervisor nor container runtime.
//!
//! ```text
//! docker/bulkhead CLI --HTTP--> server --> containers::{create,start,attach,...} --Task API--> shim (one per container)
//!                                     \--> images, system                \--fifos--> streams --> log file, attached clients
//! ```
//!
//! One utility VM stands by for the next hyperv container: [`standby`].
//!
//! Read first: [`engine::Engine`], [`container::Container`], [`streams::Streams`], [`task::Task`], [`error::ApiError`].
//! Source: Docker Engine API v1.51.
#![deny(unsafe_code)]

mod body;
mod clock;
mod container;
mod containers;
mod engine;
mod error;
mod events;
mod filters;
mod flags;
mod images;
mod listen;
mod lock;
mod log;
mod missing;
mod output;
mod query;
mod reader;
mod recovery;
mod server;
mod spec;
mod standby;
mod streams;
mod sys;
mod system;
mod task;
mod version;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    image::serve_if_converter();
    let flags = flags::Flags::parse();
    flags.install_log();
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkheadd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Few workers: the engine moves bytes and waits; what computes runs in shims, guests and blocking threads.
const WORKERS: usize = 2;

fn run(flags: flags::Flags) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let outcome = runtime.block_on(server::run(flags));
    // A blocking read of a log or an image must not keep a stopped engine alive.
    runtime.shutdown_background();
    outcome
}
