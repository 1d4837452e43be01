//! `completion`.

use clap::CommandFactory;

use super::say;
use crate::args::Cli;
use crate::args::system::CompletionArgs;
use crate::error::CliResult;

/// `completion`: the script for a shell.
pub(super) fn completion(args: &CompletionArgs) -> CliResult<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bulkhead", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())
}
