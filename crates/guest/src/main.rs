//! The guest compute service: PID 1 of a utility VM. It brings the VM to the freeze point, where nothing specific to any
//! container has happened, and after the fork serves `proto::gcs` on the one port to the host: it takes the fork's
//! identity, mounts layers and scratch, and runs one container, or a pod's. It knows no image and no other VM.
//!
//! ```text
//! early_boot ─▶ port ─▶ READY ═ freeze, fork ═▶ substreams ─▶ service ─▶ identity, pod ─▶ compute ─▶ process, reaper
//! ```
//!
//! One thread beside that of the processes' streams, no timer before the fork, no socket but two to the kernel, so that a frozen guest
//! has nothing that could be late or wrong when it runs again. A panic ends PID 1 and with it the VM, which is what the host expects of a broken guest.
#![deny(unsafe_code)]

mod archive;
mod bundle;
mod compute;
mod devices;
mod early_boot;
mod free_memory;
mod identity;
mod kernel_log;
mod lack;
mod life;
mod loopback;
mod machine;
mod name_files;
mod network;
mod places;
mod pod;
mod port;
mod process;
mod reaper;
mod service;
mod shares;
mod stream_thread;
mod substreams;
#[allow(unsafe_code)]
mod sys;
mod vsock;

use std::process::ExitCode;

use anyhow::Context;

fn main() -> ExitCode {
    container::serve_if_helper();
    // Returning from here as PID 1 is a kernel panic, which the host sees at once; so the log must be written before.
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (machine, network) = early_boot::run().context("early boot failed")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let port = port::open().context("no port to the host")?;
    runtime.block_on(async {
        let free_memory = free_memory::Reporter::find();
        let ready = service::Ready::prepare(machine, network).await?;
        let port = port.at_freeze_point().await.context("the port broke at the freeze point")?;
        free_memory.map(|reporter| tokio::spawn(reporter.report()));
        ready.serve(port).await
    })
}
