//! The engine's configuration: the command line over a file. Every flag is a key of the file, with the same meaning, so
//! that the two cannot part (docs/design/0017-configuration.md).
//!
//! A key is the flag's long name; that of a flag which may be repeated is its plural (`registry-mirrors`), as in Docker's
//! `daemon.json`. A flag that is given on the command line replaces the file's value, lists included.

mod example;
mod file;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches};

use crate::flags::Flags;
use crate::log::LogOptionsError;
pub use example::example;
use file::{Entry, Setting};

/// Read when no `--config` is given and it is there.
pub const DEFAULT_FILE: &str = "/etc/bulkhead/bulkheadd.toml";
/// How alike a wrong key and a right one must be for the right one to be offered.
const ALIKE: f64 = 0.8;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line. Its own text is what clap prints.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The file is not there, cannot be read, or is no configuration.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is neither TOML nor JSON.
    #[error("{at}: {what}")]
    Syntax {
        /// File and line.
        at: String,
        /// What the parser says.
        what: String,
    },
    /// A key that no flag has.
    #[error("{at}: unknown key {key:?}{}", hint.as_ref().map(|hint| format!("; did you mean {hint:?}?")).unwrap_or_default())]
    UnknownKey {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The nearest one that exists.
        hint: Option<String>,
    },
    /// A value that the flag does not take.
    #[error("{at}: {key}: {what}")]
    Value {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A configuration that was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub flags: Flags,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Keys of the file that the command line overrides.
    pub overridden: Vec<String>,
    /// What was given for each flag, by its key.
    given: BTreeMap<String, Vec<OsString>>,
}

impl Loaded {
    /// The keys whose values differ from those of another configuration.
    #[must_use]
    pub fn changed<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let keys = self.given.keys().chain(other.given.keys().filter(|key| !self.given.contains_key(*key)));
        keys.filter(|key| self.given.get(*key) != other.given.get(*key)).map(String::as_str).collect()
    }
}

/// Reads the command line (the program's name first) and the file that it names, or the default one if it is there.
///
/// # Errors
/// [`ConfigError`]. [`ConfigError::CommandLine`] is also `--help` and `--version`.
pub fn load(args: &[OsString]) -> Result<Loaded, ConfigError> {
    let command = Flags::command();
    let matches = command.clone().try_get_matches_from(args)?;
    let named = Flags::from_arg_matches(&matches)?.config;
    let file = named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
    let entries = file.as_deref().map(file::read).transpose()?.unwrap_or_default();
    let (mut merged, mut overridden) = (args.get(..1).unwrap_or_default().to_vec(), Vec::new());
    for entry in &entries {
        let flag = find(&command, entry)?;
        let words = words(flag, entry)?;
        check(&command, entry, &words)?;
        if matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine) {
            overridden.push(entry.key.clone());
        } else {
            merged.extend(words.into_iter().map(OsString::from));
        }
    }
    merged.extend(args.iter().skip(1).cloned());
    let matches = command.clone().try_get_matches_from(merged)?;
    let given = flags_of(&command).map(|flag| (key(flag), raw(&matches, flag))).collect();
    let flags = Flags::from_arg_matches(&matches)?;
    flags.container_defaults().map_err(|error| wrong_log_options(&entries, &overridden, &error))?;
    Ok(Loaded { flags, file, overridden, given })
}

/// Options are checked with the driver they are for, wherever either was given.
fn wrong_log_options(entries: &[Entry], overridden: &[String], error: &LogOptionsError) -> ConfigError {
    const KEY: &str = "log-opts";
    let given = entries.iter().find(|entry| entry.key == KEY && !overridden.contains(&entry.key));
    let at = given.map_or_else(|| "the command line".to_owned(), |entry| entry.at.clone());
    ConfigError::Value { at, key: KEY.to_owned(), what: error.to_string() }
}

fn raw(matches: &ArgMatches, flag: &Arg) -> Vec<OsString> {
    matches.get_raw(flag.get_id().as_str()).into_iter().flatten().map(ToOwned::to_owned).collect()
}

/// Flags that have a key: all but those which are about the command line itself.
fn flags_of(command: &clap::Command) -> impl Iterator<Item = &Arg> {
    const WITHOUT: [&str; 5] = ["help", "version", "config", "check_config", "print"];
    command.get_arguments().filter(|arg| !WITHOUT.contains(&arg.get_id().as_str()))
}

/// The key of a flag.
fn key(flag: &Arg) -> String {
    let name = flag.get_long().unwrap_or_default();
    let plural_already = name.ends_with('s') || name == "dns-search";
    match (flag.get_action(), name.strip_suffix('y')) {
        (ArgAction::Append, _) if plural_already => name.to_owned(),
        (ArgAction::Append, Some(stem)) => format!("{stem}ies"),
        (ArgAction::Append, None) => format!("{name}s"),
        _ => name.to_owned(),
    }
}

fn find<'c>(command: &'c clap::Command, entry: &Entry) -> Result<&'c Arg, ConfigError> {
    if let Some(flag) = flags_of(command).find(|flag| key(flag) == entry.key) {
        return Ok(flag);
    }
    let alike = |name: &str| strsim::jaro_winkler(name, &entry.key);
    let names = |flag: &Arg| {
        let aliases = flag.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned);
        aliases.chain([key(flag), flag.get_long().unwrap_or_default().to_owned()]).collect::<Vec<_>>()
    };
    let best = |flag: &Arg| names(flag).iter().map(|name| alike(name)).fold(0.0, f64::max);
    let nearest = flags_of(command).map(|flag| (best(flag), flag)).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.filter(|(alike, _)| *alike >= ALIKE).map(|(_, flag)| key(flag));
    Err(ConfigError::UnknownKey { at: entry.at.clone(), key: entry.key.clone(), hint })
}

/// An entry as words of the command line.
fn words(flag: &Arg, entry: &Entry) -> Result<Vec<String>, ConfigError> {
    let long = flag.get_long().unwrap_or_default();
    let wrong = |what: &str| ConfigError::Value { at: entry.at.clone(), key: entry.key.clone(), what: what.to_owned() };
    let one = |setting: &Setting| match setting {
        Setting::Text(text) => Ok(format!("--{long}={text}")),
        Setting::Bool(value) if !takes_text(flag) => Ok(format!("--{long}={value}")),
        Setting::Number(number) if !takes_text(flag) => Ok(format!("--{long}={number}")),
        Setting::Bool(_) | Setting::Number(_) => Err(wrong("a text in quotes is expected")),
        Setting::Table(pairs) => Ok(format!("--{long}={}", joined(pairs).map_err(wrong)?.join(","))),
        Setting::List(_) => Err(wrong("one value is expected, not a list")),
    };
    match (flag.get_action(), &entry.setting) {
        (ArgAction::SetTrue, Setting::Bool(true)) => Ok(vec![format!("--{long}")]),
        (ArgAction::SetTrue, Setting::Bool(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(wrong("true or false is expected")),
        (ArgAction::Append, Setting::List(items)) => items.iter().map(one).collect(),
        (ArgAction::Append, Setting::Table(pairs)) => {
            Ok(joined(pairs).map_err(wrong)?.iter().map(|pair| format!("--{long}={pair}")).collect())
        }
        (ArgAction::Append, _) => Err(wrong("a list is expected, such as [\"a\", \"b\"]")),
        (_, Setting::Table(_)) => Err(wrong("one value is expected, not a table")),
        (_, setting) => Ok(vec![one(setting)?]),
    }
}

/// True for texts and paths, which a number without quotes is not meant for.
fn takes_text(flag: &Arg) -> bool {
    let parser = flag.get_value_parser().type_id();
    [ValueParser::string().type_id(), ValueParser::path_buf().type_id()].contains(&parser)
}

/// A table as `name=value` texts.
fn joined(pairs: &[(String, Setting)]) -> Result<Vec<String>, &'static str> {
    let pair = |(name, setting): &(String, Setting)| match setting {
        Setting::Text(text) | Setting::Number(text) => Ok(format!("{name}={text}")),
        Setting::Bool(value) => Ok(format!("{name}={value}")),
        Setting::Table(fields) if let Some(limit) = limit(fields) => Ok(format!("{name}={limit}")),
        Setting::List(_) | Setting::Table(_) => Err("a table of plain values is expected, such as {name = \"value\"}"),
    };
    pairs.iter().map(pair).collect()
}

/// A limit as `daemon.json` writes it, `{"Name": "nofile", "Soft": 1, "Hard": 2}`, as the flag has it.
fn limit(fields: &[(String, Setting)]) -> Option<String> {
    let number = |wanted: &str| {
        fields.iter().find_map(|(name, setting)| match setting {
            Setting::Number(number) if name.eq_ignore_ascii_case(wanted) => Some(number),
            _ => None,
        })
    };
    let known = |name: &String| ["name", "soft", "hard"].iter().any(|known| name.eq_ignore_ascii_case(known));
    let whole = fields.iter().all(|(name, _)| known(name));
    whole.then(|| Some(format!("{}:{}", number("soft")?, number("hard")?))).flatten()
}

/// Lets clap check one entry, so that its fault is told with file and line.
fn check(command: &clap::Command, entry: &Entry, words: &[String]) -> Result<(), ConfigError> {
    let alone = std::iter::once("bulkheadd").chain(words.iter().map(String::as_str));
    let Err(error) = command.clone().try_get_matches_from(alone) else { return Ok(()) };
    let text = error.to_string();
    let lines = text.split("\n\n").next().unwrap_or_default().lines();
    let lines: Vec<&str> = lines.map(|line| line.trim().trim_start_matches("error: ")).collect();
    Err(ConfigError::Value { at: entry.at.clone(), key: entry.key.clone(), what: lines.join(" ") })
}

/// `FILE:LINE`.
fn place(path: &Path, text: &str, offset: usize) -> String {
    let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    format!("{}:{line}", path.display())
}

#[cfg(test)]
mod tests;
