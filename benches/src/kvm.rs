//! Our own VMM beside QEMU on the same KVM, beside the bare minimum that KVM asks for, and beside process containers.
//!
//! Needs a usable `/dev/kvm`: real hardware (`make bench-kvm`), or the emulated lab (`cargo xtask lab --bench`), where only the ratios
//! mean anything.

mod bare;
mod forks;
mod memory;
mod output;
mod sizes;
mod sys;
mod tiny_guest;

use anyhow::Context as _;
use bulkhead_e2e::{HostOptions, IMAGE, TestHost, Wall};

use crate::run_to_exit;

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Containers, from the client's start to its exit.
    Runs,
    /// Process, jail and fork of a tiny guest beside the bare minimum, which any /dev/kvm can.
    Minimum,
    /// Forks of the true guest, to its answer.
    Forks,
    /// Private memory of what idles.
    Memory,
}

/// What the issue asks of each part is printed beside it.
pub fn measure(rounds: usize) -> anyhow::Result<()> {
    let without = measure_runs(rounds)?;
    measure_memory(&without)?;
    println!("\n# {} MiB out of an exec, over the guest connection behind the one wall\n", output::MIB);
    output::measure(&without, rounds)?;
    drop(without);
    measure_minimum(rounds)?;
    measure_forks(rounds)
}

/// Shape: `host` keeps nothing that stands by.
fn measure_memory(host: &TestHost) -> anyhow::Result<()> {
    // The first fork of a template is another one: nobody knows yet which pages it will write.
    host.docker(&["run", "--rm", "--isolation=hyperv", "--network=none", IMAGE, "true"]).ok();
    println!("\n# Private memory of what idles\n");
    memory::measure(host)?;
    println!("\n# The same of what waits for a container, and of one that got it\n");
    memory::measure_waiting(&self::host(None)?);
    Ok(())
}

/// Up to the guest's answer.
fn measure_forks(rounds: usize) -> anyhow::Result<()> {
    println!("\n# From the request of a fork to the guest's answer\n");
    forks::measure(rounds)
}

/// End to end; what is left is the engine without a VM that stands by.
fn measure_runs(rounds: usize) -> anyhow::Result<TestHost> {
    println!("\n# From `docker run --rm` to its exit, real docker CLI, `--network none` ({rounds} rounds in turn)\n");
    let standby = host(Some(1))?;
    let by_default = host(None)?;
    let without = host(Some(0))?;
    run_to_exit::measure_on_kvm(&standby, &by_default, &without, rounds)?;
    Ok(without)
}

/// One part of it.
pub fn measure_part(part: Part, rounds: usize) -> anyhow::Result<()> {
    match part {
        Part::Runs => measure_runs(rounds).map(drop),
        Part::Minimum => measure_minimum(rounds),
        Part::Forks => measure_forks(rounds),
        Part::Memory => measure_memory(&host(Some(0))?),
    }
}

/// Our own VMM without anything that a guest does.
fn measure_minimum(rounds: usize) -> anyhow::Result<()> {
    println!("\n# Forks of a guest that only says that it runs, by the size of its memory\n");
    sizes::measure(rounds)
}

/// An engine of our own over our own VMM; all share one template.
fn host(standby: Option<u32>) -> anyhow::Result<TestHost> {
    let mut flags = vec!["--backend=kvm".to_owned(), "--log-level=warn".to_owned()];
    flags.extend(standby.map(|count| format!("--standby-vms={count}")));
    let options = HostOptions { flags, default_standby: standby.is_none(), ..HostOptions::default() };
    TestHost::start_own_with(Wall::Hyperv, &options).context("this machine lacks what the line above names")
}
