//! `containerd-shim-bulkhead-v2`: owns one container, however isolated, or those of a pod, and serves containerd's Task API for them.
//!
//! It knows no image, no registry and no HTTP: a bundle comes in, a task comes out. It outlives the engine that started it.
//!
//! ```text
//!   engine / containerd ──ttrpc──▶ service ──▶ task ──▶ trait ComputeSystem ┬▶ ProcessSystem ──▶ crate container
//!            ▲  fifos                            │                          └▶ HypervSystem ───▶ crate uvm ──▶ guest
//!            └───────────── stdio ◀──────────────┘
//! ```
//!
//! Read first: [`compute::ComputeSystem`], [`task::Task`], [`state::ProcessState`], [`stdio::Fifos`], [`bundle::Bundle`].
//! Source: containerd core/runtime/v2/README.md, api/runtime/task/v3/shim.proto.
#![deny(unsafe_code)]

mod bundle;
mod child;
mod clock;
mod compute;
mod copy_up;
mod crash;
mod events;
mod files;
mod flags;
mod foreign;
mod group;
mod hyperv;
mod keeper;
mod lack;
mod metrics;
mod network;
mod notices;
mod parts;
mod plan;
mod pod;
mod presence;
mod process;
mod reserve;
mod rest;
mod rootfs;
mod serve;
mod service;
mod shared_binds;
mod shares;
mod shim;
mod spec;
mod standby;
mod start;
mod state;
mod stdio;
mod sys;
mod systemd;
mod task;
mod templates;
mod terminal;
mod turns;
mod unique;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

use crate::flags::Flags;

const NAME: &str = "io.containerd.bulkhead.v2";
const USAGE: &str = "usage: containerd-shim-bulkhead-v2 [-namespace NAME] -id ID [-bundle DIR] [-isolation process|hyperv] [-group] [-standby] [-debug] start|delete|serve
       containerd-shim-bulkhead-v2 [-bundle DIR] [-live | -mounts] files
       containerd-shim-bulkhead-v2 copy-up
       containerd-shim-bulkhead-v2 standby <ORDER
       containerd-shim-bulkhead-v2 template ls|create|rm ID|prune -store DIR -guest-image DIR [-backend auto|kvm|qemukvm|qemutcg]
       containerd-shim-bulkhead-v2 probe -guest-image DIR [-backend auto|kvm|qemukvm|qemutcg]
       containerd-shim-bulkhead-v2 -v|-info";

fn main() -> ExitCode {
    container::serve_if_helper();
    image::serve_if_converter();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-bulkhead-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.next_if(|word| word == stdio::LOGGER_WORD).is_some() {
        return stdio::become_logger(words);
    }
    let flags = Flags::parse(words).context(USAGE)?;
    if flags.version {
        return print(format!("{NAME}:\n  Version:  {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    }
    if flags.info {
        return print(&info()?);
    }
    let words: Vec<&str> = flags.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["start"] => print(start::run(&flags)?.as_bytes()),
        ["serve"] => serve::run(&flags),
        [reserve::COMMAND] => keeper::run(),
        ["files"] => files::run(&flags),
        ["copy-up"] => print(&copy_up::run()?),
        ["share", cgroup, place] => shares::server::run(cgroup, place),
        ["delete"] => print(&crash::run(&flags)?.write_to_bytes()?),
        ["template", words @ ..] => print(templates::run(&flags, words)?.as_bytes()),
        ["probe"] => print(templates::probe(&flags)?.as_bytes()),
        _ => bail!(USAGE),
    }
}

fn info() -> anyhow::Result<Vec<u8>> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let info = RuntimeInfo { name: NAME.to_owned(), version: Some(version).into(), ..Default::default() };
    Ok(info.write_to_bytes()?)
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}
