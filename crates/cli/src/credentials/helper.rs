//! `docker-credential-*`: programs that keep credentials. Source: docker-credential-helpers, "Development".

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Account, TOKEN_USER};
use crate::error::{CliError, CliResult};

/// What helpers say, on standard output, where there is nothing. Source: docker-credential-helpers, `credentials/error.go`.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Asks for a registry's account.
pub(super) fn get(name: &str, server: &str) -> CliResult<Option<Account>> {
    let output = match call(name, "get", server)? {
        Ok(output) => output,
        Err(text) if text.contains(NOT_FOUND) => return Ok(None),
        Err(text) => return Err(failed(name, &text)),
    };
    let answer: Value = serde_json::from_str(&output).map_err(|_| failed(name, "its answer is no JSON"))?;
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    Ok(Some(Account::from_helper(text("Username"), text("Secret"))))
}

/// Gives a registry's account to the helper.
pub(super) fn store(name: &str, server: &str, account: &Account) -> CliResult<()> {
    let (username, secret) = match account.identity_token.as_str() {
        "" => (account.username.as_str(), account.password.as_str()),
        token => (TOKEN_USER, token),
    };
    let given = json!({"ServerURL": server, "Username": username, "Secret": secret}).to_string();
    call(name, "store", &given)?.map(drop).map_err(|text| failed(name, &text))
}

/// Lets the helper forget a registry.
pub(super) fn erase(name: &str, server: &str) -> CliResult<()> {
    match call(name, "erase", server)? {
        Err(text) if !text.contains(NOT_FOUND) => Err(failed(name, &text)),
        _ => Ok(()),
    }
}

fn failed(name: &str, text: &str) -> CliError {
    CliError::Usage(format!("docker-credential-{name} failed: {}", text.trim())).with_code(1)
}

/// Runs a helper; its standard output, or as an error what it said and failed.
fn call(name: &str, action: &str, input: &str) -> CliResult<Result<String, String>> {
    // The name comes from the user's own file; a path in it would be something else than a helper.
    if name.contains('/') {
        return Err(failed(name, "that is no helper's name"));
    }
    let program = format!("docker-credential-{name}");
    let broken = || CliError::local(format!("cannot run {program}"));
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(broken())?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It may know without listening.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(broken()(error)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(broken())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(if output.status.success() { Ok(text) } else { Err(text) })
}
