//! Flags of `volume`.

use clap::{Args, Subcommand};

use super::storage::{DriverArgs, PruneArgs};

/// `volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Create a volume
    Create(CreateArgs),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Show everything about volumes
    Inspect(InspectArgs),
    /// Remove volumes that no container uses
    Prune(VolumePruneArgs),
}

/// `volume ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only names
    #[arg(short, long)]
    pub quiet: bool,
    /// Only those that fit, KEY=VALUE
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
}

/// `volume create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its driver, and its labels.
    #[command(flatten)]
    pub driver: DriverArgs,
    /// Name; one is drawn if none is given
    pub name: Option<String>,
}

/// `volume rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// No failure if one is not there
    #[arg(short, long)]
    pub force: bool,
    /// Volumes, by name
    #[arg(required = true, value_name = "VOLUME")]
    pub names: Vec<String>,
}

/// `volume inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
    /// Volumes, by name
    #[arg(required = true, value_name = "VOLUME")]
    pub names: Vec<String>,
}

/// `volume prune`.
#[derive(Debug, Args)]
pub struct VolumePruneArgs {
    /// Also volumes with names
    #[arg(short, long)]
    pub all: bool,
    /// What every prune takes.
    #[command(flatten)]
    pub prune: PruneArgs,
}
