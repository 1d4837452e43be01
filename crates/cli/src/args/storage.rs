//! Flags of the commands for what is stored: `df`, `prune`, `check`, `save`.

use std::path::PathBuf;

use clap::Args;

/// What every prune takes.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Without asking
    #[arg(short, long)]
    pub force: bool,
    /// Only those that fit: until=24h, label=KEY=VALUE, label!=KEY
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
}

/// What `network create` and `volume create` share.
#[derive(Debug, Args)]
pub struct DriverArgs {
    /// Driver, if it is not the usual one
    #[arg(short, long)]
    pub driver: Option<String>,
    /// Option of the driver, NAME=VALUE
    #[arg(short, long = "opt", value_name = "OPTION")]
    pub options: Vec<String>,
    /// Label NAME=VALUE
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
}

/// `image prune`.
#[derive(Debug, Args)]
pub struct ImagePruneArgs {
    /// Every image that no container uses, not only nameless ones
    #[arg(short, long)]
    pub all: bool,
    /// What every prune takes.
    #[command(flatten)]
    pub prune: PruneArgs,
}

/// `system prune`.
#[derive(Debug, Args)]
pub struct SystemPruneArgs {
    /// Also volumes that no container uses
    #[arg(long)]
    pub volumes: bool,
    /// What `image prune` takes.
    #[command(flatten)]
    pub image: ImagePruneArgs,
}

/// `system df`.
#[derive(Debug, Args)]
pub struct DfArgs {
    /// Each image and container by itself
    #[arg(short, long)]
    pub verbose: bool,
    /// table, json, a template, or table TEMPLATE
    #[arg(long, conflicts_with = "verbose")]
    pub format: Option<String>,
}

/// `system check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Remove what nobody needs; have what is damaged made anew by the next pull or load
    #[arg(long)]
    pub repair: bool,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
}

/// `save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// File to write; standard output if none is given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}
