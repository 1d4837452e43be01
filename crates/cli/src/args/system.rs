//! Flags of the commands for engine and host.

use clap::{Args, Subcommand};

/// `version` and `info`.
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// json
    #[arg(short, long, value_parser = ["json"])]
    pub format: Option<String>,
}

/// `template`.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List templates
    #[command(visible_alias = "list")]
    Ls {
        /// Only ids
        #[arg(short, long)]
        quiet: bool,
        /// table, json, a template, or table TEMPLATE
        #[arg(long)]
        format: Option<String>,
    },
    /// Boot and freeze the template that containers are forked from, unless it is there
    Create,
    /// Remove templates; they are made again when they are needed
    #[command(visible_alias = "remove")]
    Rm {
        /// Templates, by id or its beginning
        #[arg(required = true, value_name = "TEMPLATE")]
        ids: Vec<String>,
    },
    /// Remove templates that are not used any more
    Prune,
}

/// `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// bash, zsh, fish, elvish or powershell
    pub shell: clap_complete::Shell,
}

/// `__complete`.
#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// The command line before the word that is completed, without the program's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder, which is there
    pub folder: std::path::PathBuf,
}
