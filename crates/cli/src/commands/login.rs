//! `login` and `logout`.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use serde_json::Value;

use super::{say, text};
use crate::args::registry::{LoginArgs, LogoutArgs};
use crate::client::Client;
use crate::client::url::Url;
use crate::credentials::{Account, ConfigFile, server};
use crate::error::{CliError, CliResult};
use crate::terminal;

/// `login`.
pub(super) async fn login(client: &Client, args: &LoginArgs) -> CliResult<()> {
    let server = server(args.server.as_deref().unwrap_or_default());
    let mut config = ConfigFile::open()?;
    let (username, password) = ask(args)?;
    let account = Account::with_password(&username, &password);
    let answer: Value = client.post(&Url::new("/auth"), &account.to_json(&server)).await?;
    let account = match text(&answer, "IdentityToken") {
        "" => account,
        token => Account { password: String::new(), identity_token: token.to_owned(), ..account },
    };
    if config.keep(&server, &account)?.is_none() {
        eprintln!("WARNING! Your credentials are stored unencrypted in '{}'.", config.path().display());
    }
    let status = text(&answer, "Status");
    say(if status.is_empty() { "Login Succeeded" } else { status })
}

fn ask(args: &LoginArgs) -> CliResult<(String, String)> {
    let usage = |text: &str| CliError::Usage(text.into()).with_code(1);
    let input = || CliError::local("cannot read standard input");
    if args.password_stdin {
        let username = args.username.clone().ok_or_else(|| usage("Must provide --username with --password-stdin"))?;
        let mut password = String::new();
        io::stdin().take(64 << 10).read_to_string(&mut password).map_err(input())?;
        return Ok((username, password.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if (args.username.is_none() || args.password.is_none()) && !io::stdin().is_terminal() {
        return Err(usage("Cannot perform an interactive login from a non TTY device"));
    }
    let line = |prompt: &str| {
        eprint!("{prompt}: ");
        let mut line = String::new();
        io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut line)).map_err(input())?;
        Ok::<_, CliError>(line.trim_end_matches(['\r', '\n']).to_owned())
    };
    let username = args.username.clone().map_or_else(|| line("Username"), Ok)?;
    let password = match &args.password {
        Some(password) => {
            eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        }
        None => {
            let _quiet = terminal::NoEcho::enter().map_err(CliError::local("cannot switch the terminal's echo off"))?;
            let password = line("Password")?;
            eprintln!();
            password
        }
    };
    match username.is_empty() || password.is_empty() {
        true => Err(usage("a user name and a password are needed")),
        false => Ok((username, password)),
    }
}

/// `logout`.
pub(super) fn logout(args: &LogoutArgs) -> CliResult<()> {
    let server = server(args.server.as_deref().unwrap_or_default());
    say(&format!("Removing login credentials for {server}"))?;
    ConfigFile::open()?.forget(&server)
}
