//! ps(1) of the host over the processes of a container that shares its kernel, as dockerd has it.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::error::{ApiError, ApiResult, chain};

/// How long ps may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What ps has said of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Listing {
    /// Of the columns.
    pub titles: Vec<String>,
    /// One for each process.
    pub rows: Vec<Vec<String>>,
}

/// Runs ps with the client's arguments. None where the host has no ps. Source: moby `daemon/top_unix.go`.
///
/// # Errors
/// 400 for a column that is called as the one with the process id; 500 with ps' own words, or when it shows no process ids.
pub async fn list(arguments: &str, pids: &[u32]) -> ApiResult<Option<Listing>> {
    check_titles(arguments)?;
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let listed: Vec<String> = pids.iter().map(u32::to_string).collect();
    let chosen = format!("-q{}", listed.join(","));
    let mut with_pids = words.clone();
    with_pids.push(&chosen);
    // Some options cannot be used together with a choice of processes.
    let text = match run(&with_pids).await {
        Err(_) => run(&words).await?,
        ran => ran?,
    };
    text.map(|text| parse(&text, pids)).transpose()
}

async fn run(words: &[&str]) -> ApiResult<Option<String>> {
    let mut command = Command::new("ps");
    command.args(words).env_clear().env("PATH", "/usr/bin:/bin").env("COLUMNS", "4096");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = match ended.map_err(|_| ApiError::internal("ps does not end"))? {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        ran => ran.map_err(|error| ApiError::internal(format!("ps: {}", chain(&error))))?,
    };
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().filter(|line| !line.is_empty()).map(str::to_owned);
    Err(ApiError::internal(line.unwrap_or_else(|| format!("ps: {}", output.status))))
}

/// A client may not call another column PID: it decides which processes are shown.
fn check_titles(arguments: &str) -> ApiResult<()> {
    for word in arguments.split([',', ' ', '\t']) {
        let Some((name, title)) = word.split_once('=') else { continue };
        if title.starts_with("PID") && name.trim_start_matches("-o") != "pid" {
            return Err(ApiError::internal(format!("specifying \"{name}={title}\" is not allowed")));
        }
    }
    Ok(())
}

fn parse(text: &str, pids: &[u32]) -> ApiResult<Listing> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let Some(pid_at) = titles.iter().position(|title| title == "PID") else {
        return Err(ApiError::internal("Couldn't find PID field in ps output"));
    };
    // The last column takes what is left: a command has spaces.
    let row = |line: &str| {
        let mut rest = line;
        let mut row = Vec::with_capacity(titles.len());
        while row.len() + 1 < titles.len() {
            rest = rest.trim_start();
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            row.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
        row.push(rest.trim().to_owned());
        row
    };
    // ps draws trees and shows threads in lines that have `-` for the process, and belong to the one before.
    let mut of_container = false;
    let mut rows = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let row = row(line);
        of_container = match row[pid_at].as_str() {
            "-" => of_container,
            pid => pid.parse().is_ok_and(|pid| pids.contains(&pid)),
        };
        if of_container {
            rows.push(row);
        }
    }
    Ok(Listing { titles, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let text = "  PID TTY COMMAND\n    1 ?   init\n   42 ?   sh -c  a b\n    - -   -\n";
        let listing = parse(text, &[42]).unwrap();
        assert_eq!(listing.titles, ["PID", "TTY", "COMMAND"]);
        assert_eq!(listing.rows, [["42", "?", "sh -c  a b"], ["-", "-", "-"]]);
        assert!(parse("TTY\n?\n", &[42]).is_err());
    }

    #[test]
    fn no_other_column_is_called_pid() {
        assert!(check_titles("-o ppid=PID").is_err() && check_titles("-oppid=PIDS").is_err());
        check_titles("-o pid=PID,cmd=X -ef").unwrap();
    }
}
