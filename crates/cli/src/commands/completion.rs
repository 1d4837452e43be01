//! What goes with the program: completion scripts and manual pages.

use clap::CommandFactory;

use super::say;
use crate::args::Cli;
use crate::args::system::{CompletionArgs, ManArgs};
use crate::error::{CliError, CliResult};

/// `completion`: the script for a shell.
pub(super) fn completion(args: &CompletionArgs) -> CliResult<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bulkhead", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())
}

/// `man`: a page for each command.
pub(super) fn manual(args: &ManArgs) -> CliResult<()> {
    let folder = args.folder.display();
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .map_err(CliError::local(format!("cannot write manual pages to {folder}")))
}
