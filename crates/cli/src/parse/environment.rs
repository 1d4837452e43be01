//! `--env`, `--env-file`, `--label`, `--label-file`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{CliError, CliResult};

/// The container's variables: those of the files first, then those of the flags. A name without a value takes the
/// user's own, and is left out if the user has none.
///
/// # Errors
/// When a file cannot be read or an entry has no name.
pub fn variables(
    files: &[impl AsRef<Path>],
    flags: &[String],
    own: impl Fn(&str) -> Option<String>,
) -> CliResult<Vec<String>> {
    let mut entries = Vec::new();
    for file in files {
        entries.extend(lines(file.as_ref())?);
    }
    entries.extend(flags.iter().cloned());
    let mut variables = Vec::new();
    for entry in entries {
        match entry.split_once('=') {
            Some(("", _)) => return Err(CliError::Usage(format!("invalid environment variable: {entry}"))),
            Some(_) => variables.push(entry),
            None if entry.is_empty() => {
                return Err(CliError::Usage("invalid environment variable: it is empty".into()));
            }
            None => variables.extend(own(&entry).map(|value| format!("{entry}={value}"))),
        }
    }
    Ok(variables)
}

/// The container's labels: those of the files first, then those of the flags.
///
/// # Errors
/// When a file cannot be read or an entry has no name.
pub fn labels(files: &[impl AsRef<Path>], flags: &[String]) -> CliResult<HashMap<String, String>> {
    let mut entries = Vec::new();
    for file in files {
        entries.extend(lines(file.as_ref())?);
    }
    entries.extend(flags.iter().cloned());
    pairs(&entries, "label")
}

/// Entries `name=value`; a name alone has an empty value.
///
/// # Errors
/// When an entry has no name.
pub fn pairs(entries: &[String], what: &str) -> CliResult<HashMap<String, String>> {
    let pair = |entry: &String| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if name.is_empty() {
            return Err(CliError::Usage(format!("invalid {what}: {entry:?} has no name")));
        }
        Ok((name.to_owned(), value.to_owned()))
    };
    entries.iter().map(pair).collect()
}

/// More than that is no list of variables: the kernel gives a new process a few megabytes of them at most.
const LONGEST_FILE: u64 = 8 << 20;

/// Reads a file of entries, which may be a pipe.
fn read(path: &Path) -> CliResult<String> {
    let unfit = |why: String| CliError::Usage(format!("poorly formatted file {}: {why}", path.display()));
    let file = File::open(path).map_err(CliError::file(path))?;
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).map_err(CliError::file(path))?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(unfit(format!("it has more than {} MiB", LONGEST_FILE >> 20)));
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(|| unfit("it is no text".into()))
}

/// The lines of a file without comments and empty ones. Source: docker/cli `opts/file.go`.
fn lines(path: &Path) -> CliResult<Vec<String>> {
    let text = read(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let kept = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<String> = kept.map(|line| line.trim_end_matches('\r').to_owned()).collect();
    let spaced = |line: &&String| line.split('=').next().is_some_and(|name| name.contains([' ', '\t']));
    match lines.iter().find(spaced) {
        Some(line) => {
            Err(CliError::Usage(format!("poorly formatted file {}: {line:?} has a blank in its name", path.display())))
        }
        None => Ok(lines),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_before_flags_and_bare_names_take_the_users_value() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        std::fs::write(&file, "\u{feff}# comment\n\n  A=1\nB\nC=a=b \"c\"\r\n").unwrap();
        let own = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let variables = variables(&[file], &["HOME".into(), "NOPE".into(), "A=2".into(), "E=".into()], own).unwrap();
        assert_eq!(variables, ["A=1", "C=a=b \"c\"", "HOME=/root", "A=2", "E="]);
    }

    #[test]
    fn entries_without_a_name_are_refused() {
        let none: [&Path; 0] = [];
        assert!(variables(&none, &["=x".into()], |_| None).is_err());
        assert!(variables(&none, &[String::new()], |_| None).is_err());
        assert!(labels(&none, &["=x".into()]).is_err());
        assert!(variables(&[Path::new("/nonexistent")], &[], |_| None).is_err());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bad"), "A B=1\n").unwrap();
        assert!(variables(&[folder.path().join("bad")], &[], |_| None).is_err());
    }

    /// Case F65.
    #[test]
    fn files_that_are_no_list_of_entries_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            variables(&[path], &[], |_| None).unwrap_err().to_string()
        };
        assert!(refused("binary", b"A=\xff\xfe").contains("it is no text"));
        assert!(refused("zero", b"A=1\0B=2").contains("it is no text"));
        assert!(refused("long", &vec![b'A'; usize::try_from(LONGEST_FILE).unwrap() + 1]).contains("more than 8 MiB"));
        let endless = variables(&[Path::new("/dev/zero")], &[], |_| None).unwrap_err();
        assert!(endless.to_string().contains("more than 8 MiB"));
    }

    #[test]
    fn labels_may_be_bare() {
        let none: [&Path; 0] = [];
        let labels = labels(&none, &["a=b=c".into(), "d".into()]).unwrap();
        assert_eq!((labels["a"].as_str(), labels["d"].as_str()), ("b=c", ""));
    }
}
