//! An example file, made of the flags themselves: it cannot go stale.

use clap::{Arg, ArgAction, CommandFactory};

use super::{flags_of, key, takes_text};
use crate::flags::Flags;

/// Values for flags that have no default of their own, by key.
const VALUES: [(&str, &str); 11] = [
    ("hosts", "[\"unix:///run/bulkhead.sock\"]"),
    ("pidfile", "\"/run/bulkheadd.pid\""),
    ("bip", "\"172.17.0.1/16\""),
    ("guest-image", "\"/usr/lib/bulkhead\""),
    ("shim", "\"/usr/bin/containerd-shim-bulkhead-v2\""),
    ("standby-vms", "1"),
    ("template-store", "\"/var/lib/bulkhead/templates\""),
    ("registry-mirrors", "[\"https://mirror.example.org\"]"),
    ("log-opts", "{max-size = \"10m\", max-file = \"3\"}"),
    ("default-ulimits", "{nofile = \"1024:524288\"}"),
    ("insecure-registries", "[\"registry.example.org:5000\", \"10.0.0.0/8\"]"),
];

const HEAD: &str = "\
# Configuration of bulkheadd, read when it starts. Every key is a flag of `bulkheadd --help`; a flag on the command line
# replaces the key here. A key or value that cannot be is an error: `bulkheadd --check-config` tells it ahead.
# `systemctl reload bulkhead`, or SIGHUP, takes over debug, log-level, labels, registry-mirrors and insecure-registries
# without a restart.
";

/// A file with every key that is not hidden, explained and commented out.
#[must_use]
pub fn example() -> String {
    let command = Flags::command();
    let shown = flags_of(&command).filter(|flag| !flag.is_hide_set());
    let entries: Vec<String> = shown.map(entry).collect();
    format!("{HEAD}\n{}", entries.join("\n"))
}

fn entry(flag: &Arg) -> String {
    let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let help: String = wrapped(&help).iter().map(|line| format!("# {line}\n")).collect();
    format!("{help}#{} = {}\n", key(flag), value(flag))
}

fn value(flag: &Arg) -> String {
    let key = key(flag);
    if let Some((_, value)) = VALUES.iter().find(|(name, _)| *name == key) {
        return (*value).to_owned();
    }
    let default = flag.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let plain = |text: &str| text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok();
    match (flag.get_action(), default) {
        (ArgAction::SetTrue, _) => "false".to_owned(),
        (ArgAction::Append, _) => "[]".to_owned(),
        (_, Some(default)) if plain(&default) && !takes_text(flag) => default,
        (_, Some(default)) => format!("{default:?}"),
        (_, None) => "\"\"".to_owned(),
    }
}

/// Breaks a text into lines of at most 110 characters.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < 110 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
