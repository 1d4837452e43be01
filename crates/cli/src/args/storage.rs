//! Flags of the commands for what is stored: `system`, `image`, `container prune`, `save`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::image::{HistoryArgs, ImagesArgs, ImportArgs, LoadArgs, RmiArgs, TagArgs};
use super::process::InspectArgs;

/// `system`.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show what takes the disk
    Df(DfArgs),
    /// Remove what nobody uses: stopped containers and nameless images
    Prune(SystemPruneArgs),
    /// Verify everything that is stored
    Check(CheckArgs),
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Remove images that nobody uses
    Prune(ImagePruneArgs),
    /// Show everything about images
    Inspect(ImageInspectArgs),
    /// Show the steps that made an image
    History(HistoryArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Load images from an archive
    Load(LoadArgs),
    /// Make an image from a root file system
    Import(ImportArgs),
}

/// `container`.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Remove all stopped containers
    Prune(PruneArgs),
}

/// `image inspect`.
#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
    /// Images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

impl From<&ImageInspectArgs> for InspectArgs {
    fn from(args: &ImageInspectArgs) -> Self {
        let kind = Some("image".to_owned());
        Self { format: args.format.clone(), kind, size: false, names: args.names.clone() }
    }
}

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
