//! `bulkhead`: the command line for the engine. It speaks only the Engine API, with the verbs and flags of docker.
//!
//! ```text
//! args --parse--> request --client--> engine
//!                    session: the user's terminal joined to a container's streams
//!                    output: tables, templates, progress
//! ```
//!
//! Read first: [`args::Cli`], [`client::Client`], [`session::Session`], [`error::CliError`], [`output::listing`].
#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod credentials;
mod error;
mod output;
mod parse;
mod preferences;
mod request;
mod session;
mod terminal;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::client::Client;
use crate::client::address::{self, Asked};
use crate::credentials::ConfigFile;
use crate::error::{CliError, CliResult, REFUSED};
use crate::output::color::{self, Tone};

fn main() {
    let code = match Cli::try_parse() {
        Ok(cli) => run(cli).unwrap_or_else(|error| {
            report(&error);
            error.code()
        }),
        Err(error) => refuse(&error),
    };
    // A thread may still wait for standard input, which nothing but the end of the process interrupts.
    std::process::exit(i32::from(code));
}

fn run(cli: Cli) -> CliResult<u8> {
    let asked = Asked { host: cli.host.as_deref(), context: cli.context.as_deref() };
    let address = address::choose(asked, |name| std::env::var(name).ok())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::local("cannot start"))?;
    let code = runtime.block_on(commands::run(&Client::new(address, ConfigFile::preferences()), cli.command));
    runtime.shutdown_background();
    code
}

/// Prints clap's help and versions as they are, and its errors as one line, with docker's exit code.
fn refuse(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Standard output is closed: nobody is there to be told.
            let _ = error.print();
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // As above.
            let _ = error.print();
            REFUSED
        }
        _ => {
            report(&CliError::Usage(one_line(&error.to_string())));
            REFUSED
        }
    }
}

/// What is wrong, with the missing arguments, and where to read more; without tips and usage.
fn one_line(text: &str) -> String {
    let what = text.split("\n\n").next().unwrap_or_default();
    let what: Vec<&str> = what.lines().map(|line| line.trim().trim_start_matches("error: ")).collect();
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let words = usage.unwrap_or("bulkhead").split_whitespace();
    let command: Vec<&str> = words.take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect();
    format!("{} (see '{} --help')", what.join(" "), command.join(" "))
}

/// One clear line on standard error.
fn report(error: &CliError) {
    if let Some(message) = error.message() {
        let name = color::paint("bulkhead:", Tone::Bad, color::on_stderr());
        eprintln!("{name} {}", message.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        for (words, expected) in [
            ("bulkhead run --nope x", "unexpected argument '--nope' found (see 'bulkhead run --help')"),
            (
                "bulkhead rename a",
                "the following required arguments were not provided: <NEW_NAME> (see 'bulkhead rename --help')",
            ),
        ] {
            let error = Cli::try_parse_from(words.split(' ')).unwrap_err();
            assert_eq!(one_line(&error.to_string()), expected);
        }
        let error = Cli::try_parse_from("bulkhead run --memory x y".split(' ')).unwrap_err();
        let line = one_line(&error.to_string());
        assert!(line.contains("invalid size: 'x'") && !line.contains('\n'), "{line}");
    }
}
