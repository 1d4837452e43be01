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
mod error;
mod output;
mod parse;
mod request;
mod session;
mod terminal;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::client::{Client, address};
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
    let socket = address::choose(cli.host.as_deref(), |name| std::env::var(name).ok())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::local("cannot start"))?;
    let code = runtime.block_on(commands::run(&Client::new(socket), cli.command));
    runtime.shutdown_background();
    code
}

/// Prints clap's help and versions, and its errors with docker's exit code.
fn refuse(error: &clap::Error) -> u8 {
    // Standard output or error is closed: nobody is there to be told.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ => REFUSED,
    }
}

/// One clear line on standard error.
fn report(error: &CliError) {
    if let Some(message) = error.message() {
        let name = color::paint("bulkhead:", Tone::Bad, color::on_stderr());
        eprintln!("{name} {}", message.trim_end());
    }
}
