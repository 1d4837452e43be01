//! Flags of the commands for containers' files.

use std::path::PathBuf;

use clap::Args;

/// `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// Keep the owners, where they can be kept
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what a link in SRC leads to, and not the link
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Do not say what was copied
    #[arg(short, long)]
    pub quiet: bool,
    /// CONTAINER:PATH, a path, or - for a tar stream on standard input
    #[arg(value_name = "SRC")]
    pub source: String,
    /// CONTAINER:PATH, a path, or - for a tar stream on standard output
    #[arg(value_name = "DEST")]
    pub destination: String,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Container, by name or id
    pub container: String,
}

/// `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// File for the archive; standard output if none is given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Container, by name or id
    pub container: String,
}

/// `commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Who made the image
    #[arg(short, long, value_name = "TEXT")]
    pub author: Option<String>,
    /// Instruction for the image's configuration, such as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Remark in the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Let the container's processes stand still meanwhile
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub pause: bool,
    /// Container, by name or id
    pub container: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
}
