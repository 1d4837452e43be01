//! `cargo xtask setup`: the same as `scripts/setup`, which needs no Rust.

use std::process::Command;

use crate::workspace;

/// What the machine is to be prepared for.
#[derive(clap::Args)]
pub struct SetupArgs {
    /// Any of build, run, test, bench, conformance, lab.
    #[arg(default_values_t = ["build".to_owned(), "run".to_owned()])]
    purposes: Vec<String>,
}

pub fn run(args: &SetupArgs) -> anyhow::Result<()> {
    workspace::run_checked(Command::new(workspace::root().join("scripts/setup")).args(&args.purposes))
}
