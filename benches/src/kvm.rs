//! Our own VMM beside QEMU on the same KVM, beside the bare minimum that KVM asks for, and beside process containers.
//!
//! Needs a usable `/dev/kvm`: real hardware (`make bench-kvm`), or the emulated lab (`cargo xtask lab --bench`), where only the ratios
//! mean anything.

mod bare;
mod forks;
mod memory;
mod sizes;
mod sys;
mod tiny_guest;

use anyhow::Context as _;
use bulkhead_e2e::{HostOptions, TestHost, Wall};

use crate::run_to_exit;

/// What the issue asks of each part is printed beside it.
pub fn measure(rounds: usize) -> anyhow::Result<()> {
    println!("\n# Forks of a guest that only says that it runs, by the size of its memory ({rounds} rounds in turn)\n");
    sizes::measure(rounds)?;
    println!("\n# From the request of a fork to the guest's answer\n");
    forks::measure(rounds)?;
    println!("\n# From `docker run --rm` to its exit, real docker CLI, `--network none`\n");
    let standby = host("kvm", 1)?;
    let without = host("kvm", 0)?;
    let qemu = host("qemu-kvm", 0)?;
    run_to_exit::measure_on_kvm(&standby, &without, &qemu, rounds)?;
    drop((standby, qemu));
    println!("\n# Private memory of what idles\n");
    memory::measure(&without)
}

/// An engine of our own over this backend, with templates of its own.
fn host(backend: &str, standby: u32) -> anyhow::Result<TestHost> {
    let flags = vec![format!("--backend={backend}"), format!("--standby-vms={standby}"), "--log-level=warn".to_owned()];
    let options = HostOptions { own_templates: true, flags, ..HostOptions::default() };
    TestHost::start_own_with(Wall::Hyperv, &options).context("this machine lacks what the line above names")
}
