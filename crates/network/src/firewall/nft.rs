//! The program `nft`, fed on its standard input. Its library is GPL-2 and is not linked.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::error::NetworkError;
use crate::failpoint;

fn failed(text: impl std::fmt::Display) -> NetworkError {
    NetworkError::Firewall(text.to_string())
}

/// Carries out commands as one transaction. No command is none to carry out.
pub(super) fn run(commands: &str) -> Result<(), NetworkError> {
    if commands.is_empty() {
        return Ok(());
    }
    failpoint::step("change the firewall")?;
    let mut child = program(&["-f", "-"]).stdin(Stdio::piped()).spawn().map_err(|error| no_program(&error))?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ended early says why itself.
        let _ = input.write_all(commands.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() { Ok(()) } else { Err(said(&output)) }
}

/// How many elements each set and map of a table has, and how many rules each chain; none when there is no such table.
pub(super) fn counts(table: &str) -> Result<Option<BTreeMap<String, usize>>, NetworkError> {
    let output = program(&["-j", "list", "table", "inet", table])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no_program(&error))?;
    if !output.status.success() {
        return Ok(None);
    }
    let listing: Value = serde_json::from_slice(&output.stdout).map_err(failed)?;
    let mut counts = BTreeMap::new();
    for item in listing["nftables"].as_array().into_iter().flatten() {
        for kind in ["set", "map"] {
            if let Some(name) = item[kind]["name"].as_str() {
                counts.insert(name.to_owned(), item[kind]["elem"].as_array().map_or(0, Vec::len));
            }
        }
        if let Some(name) = item["chain"]["name"].as_str() {
            counts.entry(name.to_owned()).or_insert(0);
        }
        if let Some(name) = item["rule"]["chain"].as_str() {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    Ok(Some(counts))
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new("nft");
    // Where it is when PATH is a user's.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn no_program(error: &std::io::Error) -> NetworkError {
    failed(format!("the program nft cannot be run: {error}; install nftables"))
}

fn said(output: &Output) -> NetworkError {
    let text = String::from_utf8_lossy(&output.stderr);
    let first: Vec<&str> = text.lines().take(3).collect();
    failed(format!("nft: {}", first.join(" ")))
}

/// A table as the program writes it; none when there is no such table.
#[cfg(test)]
pub(super) fn listing(family: &str, table: &str) -> Result<Option<String>, NetworkError> {
    let output = program(&["list", "table", family, table]).output().map_err(|error| no_program(&error))?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}
