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
mod build;
mod builds;
mod clock;
mod config;
mod connections;
mod container;
mod containers;
mod defaults;
mod disk_use;
mod engine;
mod error;
mod events;
mod fetch;
mod filters;
mod flags;
mod images;
mod leftover;
mod listen;
mod lock;
mod log;
mod missing;
mod network;
mod networks;
mod notify;
mod output;
mod peer;
mod query;
mod reader;
mod recovery;
mod refusal;
mod reload;
mod server;
mod spec;
mod standby;
mod streams;
mod sys;
mod system;
mod task;
mod verbosity;
mod version;
mod volume;
mod volumes;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use config::{ConfigError, Loaded};
use flags::{Flags, Print};

fn main() -> ExitCode {
    image::serve_if_converter();
    let args: Vec<OsString> = std::env::args_os().collect();
    let loaded = match config::load(&args) {
        Ok(loaded) => loaded,
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => {
            eprintln!("bulkheadd: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match loaded.flags.print {
        Some(what) => print(what),
        None if loaded.flags.check_config => check(&loaded),
        None => run(args, loaded),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkheadd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Few workers: the engine moves bytes and waits; what computes runs in shims, guests and blocking threads.
const WORKERS: usize = 2;

fn run(args: Vec<OsString>, loaded: Loaded) -> anyhow::Result<()> {
    let verbosity = verbosity::Verbosity::install(&loaded.flags);
    if !loaded.overridden.is_empty() {
        tracing::info!("flags that override the configuration file: {}", loaded.overridden.join(", "));
    }
    let reloader = reload::Reloader { args, current: loaded, verbosity };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let outcome = runtime.block_on(server::run(reloader));
    // A blocking read of a log or an image must not keep a stopped engine alive.
    runtime.shutdown_background();
    outcome
}

/// `--check-config`.
fn check(loaded: &Loaded) -> anyhow::Result<()> {
    listen::check(&loaded.flags.hosts)?;
    let settings = loaded.flags.settings()?;
    settings.registries.check()?;
    say(b"configuration OK\n")
}

/// `--print`.
fn print(what: Print) -> anyhow::Result<()> {
    let mut text = Vec::new();
    match what {
        Print::Config => text = config::example().into_bytes(),
        Print::Man => clap_mangen::Man::new(Flags::command()).section("8").render(&mut text)?,
    }
    say(&text)
}

fn say(text: &[u8]) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text).context("cannot write to standard output")
}
