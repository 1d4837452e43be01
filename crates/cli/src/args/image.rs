//! Flags of the commands for images.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// `images`.
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Also images without a name that others are made of
    #[arg(short, long)]
    pub all: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Ids in full
    #[arg(long)]
    pub no_trunc: bool,
    /// With digests
    #[arg(long)]
    pub digests: bool,
    /// Each image with its names below it
    #[arg(long, conflicts_with_all = ["quiet", "format", "digests"])]
    pub tree: bool,
    /// Only those that fit, KEY=VALUE
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
    /// Only images with this name; * and ? stand for anything
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
}

/// `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Archive; standard input if none is given
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Without progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Instruction for the image's configuration, such as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Remark in the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Platform, such as linux/amd64
    #[arg(long)]
    pub platform: Option<String>,
    /// Archive of the root file system; - for standard input
    pub file: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
}

/// `rmi`.
#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Also images with several names or with stopped containers
    #[arg(short, long)]
    pub force: bool,
    /// Keep untagged parents (there are none: an image holds all of its layers)
    #[arg(long)]
    pub no_prune: bool,
    /// Images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// `tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Image, by name or id
    pub image: String,
    /// Its further name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub target: String,
}

/// `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Commands in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Sizes and times for people; without: bytes and dates
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub human: bool,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
    /// Image, by name or id
    pub image: String,
}
