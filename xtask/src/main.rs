//! Development tasks of this workspace: `cargo xtask TASK`. One file a task; nothing here is shipped.
#![forbid(unsafe_code)]

mod arch;
mod boot;
mod conformance;
mod lab;
mod setup;
mod suite;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of Bulkhead.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Makes the guest image: kernel, modules and the guest compute service.
    Boot(boot::BootArgs),
    /// Checks crate arrows, module cycles, sizes, where `unsafe` is, and that ARCHITECTURE.md is true.
    Arch,
    /// Installs the Debian packages that a purpose needs and that are missing.
    Setup(setup::SetupArgs),
    /// Runs a shell, a command or tests on an emulated machine with KVM and cgroup version 2.
    Lab(lab::LabArgs),
    /// Runs test suites of others against this engine, beside Docker's own daemon.
    Conformance(conformance::ConformanceArgs),
    /// Runs the unit, contract and e2e tests; counts what was skipped and why.
    Test(suite::TestArgs),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("xtask: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Boot(args) => boot::run(&args),
        Task::Arch => arch::run(),
        Task::Setup(args) => setup::run(&args),
        Task::Lab(args) => lab::run(&args),
        Task::Conformance(args) => conformance::run(&args),
        Task::Test(args) => suite::run(&args),
    }
}
