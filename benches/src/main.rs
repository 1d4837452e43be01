//! Measures Bulkhead beside Docker and runc, in turn, in one run on one machine, and prints ratios.
//!
//! Never a test: nothing here fails because a machine is slow. `README.md` beside this folder's `Cargo.toml` says how to read it.
#![deny(unsafe_code)]

mod containerd;
mod footprint;
mod kvm;
mod lazy;
mod load;
mod network;
mod reference;
mod run_to_exit;
mod runtime;
mod series;
mod standby;
mod start_share;
mod storm;
mod working_set;

use std::process::ExitCode;

use anyhow::{Context, bail};
use bulkhead_e2e::{HostOptions, TestHost, Wall};
use clap::Parser;

use crate::reference::Dockerd;
use crate::standby::Standby;

/// Bulkhead beside Docker and runc: medians and ratios from one run.
#[derive(Parser)]
struct Arguments {
    /// Rounds per comparison; every side runs once in each round.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Leave out what needs Docker's daemon.
    #[arg(long)]
    without_docker: bool,
    /// Only starts from a large image against starts from a small one.
    #[arg(long)]
    only_lazy: bool,
    /// Measure `docker load` of a Debian image, and nothing else.
    #[arg(long)]
    load: bool,
    /// Measure what a network costs a start, and nothing else.
    #[arg(long)]
    start_share: bool,
    /// Start this many containers at once, then a hundred execs a second, and nothing else.
    #[arg(long, value_name = "CONTAINERS")]
    storm: Option<usize>,
    /// Measure our own VMM on this machine's KVM beside QEMU's, the bare minimum and process containers, and nothing else.
    #[arg(long)]
    kvm: bool,
    /// Only one part of that.
    #[arg(long, value_name = "PART")]
    kvm_part: Option<kvm::Part>,
    /// Measure our shim beside runc's under a plain containerd, and nothing else.
    #[arg(long)]
    containerd: bool,
    /// Measure throughput and round trips of containers' networks, and nothing else.
    #[arg(long)]
    network: bool,
}

fn main() -> ExitCode {
    container::serve_if_helper();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    if arguments.only_lazy {
        return lazy::measure(&start("--standby-vms=0")?, arguments.rounds);
    }
    if let Some(part) = arguments.kvm_part {
        return kvm::measure_part(part, arguments.rounds);
    }
    if arguments.kvm {
        return kvm::measure(arguments.rounds);
    }
    if arguments.containerd {
        return containerd::measure(arguments.rounds);
    }
    if arguments.load {
        let host = start("--standby-vms=0")?;
        let dockerd = if arguments.without_docker { None } else { Some(Dockerd::start()?) };
        println!("\n# `docker load`, real docker CLI ({} rounds in turn)\n", arguments.rounds);
        return load::measure(&host, dockerd.as_ref(), arguments.rounds);
    }
    if arguments.network {
        // Like dockerd's: what else is on the machine, rules of its firewall above all, costs either side nothing then.
        let host = start_in("--log-level=warn", true)?;
        let dockerd = if arguments.without_docker { None } else { Some(Dockerd::start()?) };
        println!("\n# Networks: iperf3 and ping ({} rounds in turn)\n", arguments.rounds);
        return network::measure(&host, dockerd.as_ref(), arguments.rounds);
    }
    if arguments.start_share {
        let host = start("--standby-vms=1")?;
        let dockerd = if arguments.without_docker { None } else { Some(Dockerd::start()?) };
        println!("\n# The network of a start, through the API ({} rounds in turn)\n", arguments.rounds);
        return start_share::measure(&host, dockerd.as_ref(), arguments.rounds);
    }
    if let Some(containers) = arguments.storm {
        let host = start("--log-level=warn")?;
        let dockerd = if arguments.without_docker { None } else { Some(Dockerd::start()?) };
        return storm::measure(&host, dockerd.as_ref(), containers);
    }
    run_all(arguments)
}

/// What `make bench` measures without arguments.
fn run_all(arguments: &Arguments) -> anyhow::Result<()> {
    let host = start("--standby-vms=1")?;
    let without_standby = start("--standby-vms=0")?;
    let dockerd = if arguments.without_docker { None } else { Some(Dockerd::start()?) };

    println!("\n# From `docker run --rm` to its exit, real docker CLI ({} rounds in turn)\n", arguments.rounds);
    run_to_exit::measure(&host, &without_standby, dockerd.as_ref(), arguments.rounds)?;
    println!("\n# The network of a start, through the API\n");
    start_share::measure(&host, dockerd.as_ref(), arguments.rounds)?;
    Standby::new(&host).wait();
    println!("\n# Runtime part: create, start, wait, delete of one process container\n");
    runtime::measure(arguments.rounds)?;
    println!("\n# Fork against the boot of its template\n");
    footprint::fork_against_boot(&without_standby, arguments.rounds)?;
    println!("\n# Starting from an image of 1 GiB against one of 2 MB\n");
    lazy::measure(&without_standby, arguments.rounds)?;
    println!("\n# A utility VM that stood by: from Create to the acknowledged personalization\n");
    footprint::adoption(&host, arguments.rounds)?;
    println!("\n# Private memory of what idles, every process of it counted\n");
    let mut memory = footprint::IdleMemory::new();
    memory.of_standby(&host);
    // What follows is alone on this machine: nothing else maps our programs.
    drop(host);
    memory.of_containers(&without_standby);
    memory.print();
    Ok(())
}

/// An engine of our own with one more flag, and templates of its own.
fn start(flag: &str) -> anyhow::Result<TestHost> {
    start_in(flag, false)
}

fn start_in(flag: &str, own_network: bool) -> anyhow::Result<TestHost> {
    let flags = vec![flag.to_owned()];
    let options = HostOptions { own_templates: true, flags, own_network, ..HostOptions::default() };
    TestHost::start_own_with(Wall::Hyperv, &options).context("this machine lacks what the line above names")
}
