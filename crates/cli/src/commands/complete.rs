//! `__complete`: names for the shell's completion, asked of the engine. What the completion scripts call, and nobody else.

use std::time::Duration;

use clap::{Arg, ArgAction, Command, CommandFactory};
use serde_json::Value;

use super::say;
use crate::args::Cli;
use crate::args::system::CompleteArgs;
use crate::client::Client;
use crate::client::address::{self, Asked};
use crate::client::url::Url;
use crate::error::CliResult;

/// How long a user at the keyboard waits for an engine that does not answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container,
    Running,
    Image,
    Network,
    Volume,
    /// Anything that `inspect` knows.
    Any,
}

/// `__complete`: a name a line. Nothing when nothing can be named there, or no engine answers: a completion has no errors.
pub(super) async fn complete(client: &Client, args: &CompleteArgs) -> CliResult<()> {
    let Some(kind) = wanted(&args.words) else { return Ok(()) };
    let given = |flags: [&str; 2]| {
        let at = args.words.iter().position(|word| flags.contains(&word.as_str()))?;
        args.words.get(at + 1).map(String::as_str)
    };
    let asked = Asked { host: given(["-H", "--host"]), context: given(["-c", "--context"]) };
    let other = (asked.host.is_some() || asked.context.is_some())
        .then(|| address::choose(asked, |name| std::env::var(name).ok()).ok())
        .map(|address| address.map(|address| Client::new(address, client.preferences().clone())));
    let client = match &other {
        Some(Some(other)) => other,
        Some(None) => return Ok(()),
        None => client,
    };
    let names = tokio::time::timeout(PATIENCE, names(client, kind)).await.unwrap_or_default();
    if names.is_empty() { Ok(()) } else { say(&names.join("\n")) }
}

async fn names(client: &Client, kind: Kind) -> Vec<String> {
    let kinds: &[Kind] = match kind {
        Kind::Any => &[Kind::Container, Kind::Image, Kind::Network, Kind::Volume],
        _ => &[kind],
    };
    let mut found = Vec::new();
    for kind in kinds {
        let url = match kind {
            Kind::Container | Kind::Any => Url::new("/containers/json").with("all", "1"),
            Kind::Running => Url::new("/containers/json"),
            Kind::Image => Url::new("/images/json"),
            Kind::Network => Url::new("/networks"),
            Kind::Volume => Url::new("/volumes"),
        };
        // No engine, no names.
        let Ok(list) = client.get::<Value>(&url).await else { continue };
        let list = if *kind == Kind::Volume { list["Volumes"].clone() } else { list };
        for one in list.as_array().into_iter().flatten() {
            match kind {
                Kind::Image => found.extend(texts(&one["RepoTags"]).filter(|name| name != "<none>:<none>")),
                Kind::Network | Kind::Volume => found.extend(one["Name"].as_str().map(str::to_owned)),
                _ => found.extend(texts(&one["Names"]).map(|name| name.trim_start_matches('/').to_owned())),
            }
        }
    }
    // A name with a blank would be two words for a shell, and none has one.
    found.retain(|name| !name.contains(char::is_whitespace));
    found
}

fn texts(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned))
}

/// What the next word names. Shape: `words` are those before it, without the program's.
fn wanted(words: &[String]) -> Option<Kind> {
    let mut command = Cli::command();
    command.build();
    let (mut command, mut verbs, mut position, mut pending) = (&command, Vec::new(), 0, None);
    for word in words {
        if pending.take().is_some() {
            continue;
        }
        if let Some(flag) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            pending = value_of(command, flag);
        } else if let Some(inner) = command.find_subcommand(word) {
            verbs.push(inner.get_name());
            command = inner;
        } else {
            position += 1;
        }
    }
    let named = match pending {
        Some(flag) => value_name(flag, 0)?,
        None => positional(command, position)?,
    };
    let acts_on_running =
        |verb: &&str| matches!(*verb, "attach" | "exec" | "kill" | "pause" | "stats" | "stop" | "top" | "unpause");
    match named.as_str() {
        "CONTAINER" if verbs.last().is_some_and(acts_on_running) => Some(Kind::Running),
        "CONTAINER" => Some(Kind::Container),
        "IMAGE" => Some(Kind::Image),
        "NETWORK" => Some(Kind::Network),
        "VOLUME" => Some(Kind::Volume),
        "NAME" | "NAMES" if verbs == ["inspect"] => Some(Kind::Any),
        _ => None,
    }
}

/// The flag that wants the next word, if this one does.
fn value_of<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let takes =
        |arg: &&Arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set();
    if let Some(long) = flag.strip_prefix('-') {
        let known = |arg: &&Arg| arg.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long));
        return command.get_arguments().find(known).filter(takes);
    }
    // `-it` is two flags; the first that takes a value has the rest of the word for it.
    for (at, letter) in flag.char_indices() {
        let arg = command.get_arguments().find(|arg| arg.get_short() == Some(letter))?;
        if takes(&arg) {
            return (at + letter.len_utf8() == flag.len()).then_some(arg);
        }
    }
    None
}

/// What the argument at a position is called: the last goes on for ever if it may.
fn positional(command: &Command, position: usize) -> Option<String> {
    let arguments: Vec<&Arg> = command.get_positionals().collect();
    let last = arguments.len().checked_sub(1)?;
    let argument = arguments[position.min(last)];
    let more = matches!(argument.get_action(), ArgAction::Append);
    match position.checked_sub(last) {
        Some(beyond) if beyond > 0 && !more => None,
        beyond => value_name(argument, beyond.unwrap_or(0)),
    }
}

fn value_name(argument: &Arg, at: usize) -> Option<String> {
    match argument.get_value_names() {
        Some(names) => names.get(at).or(names.last()).map(ToString::to_string),
        None => Some(argument.get_id().as_str().to_uppercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_tells_what_is_named_there() {
        for (words, expected) in [
            ("stop", Some(Kind::Running)),
            ("stop a -t 5", Some(Kind::Running)),
            ("stop -t", None),
            ("container start a", Some(Kind::Container)),
            ("-H unix:///x rm -f", Some(Kind::Container)),
            ("exec -it", Some(Kind::Running)),
            ("exec -it a", None),
            ("run", Some(Kind::Image)),
            ("run -it --rm --network", Some(Kind::Network)),
            ("run --name x -e A=1", Some(Kind::Image)),
            ("run box", None),
            ("run --volumes-from", Some(Kind::Container)),
            ("rmi a", Some(Kind::Image)),
            ("image rm", Some(Kind::Image)),
            ("network rm", Some(Kind::Network)),
            ("network connect", Some(Kind::Network)),
            ("network connect a", Some(Kind::Container)),
            ("volume inspect", Some(Kind::Volume)),
            ("inspect", Some(Kind::Any)),
            ("logs -f", Some(Kind::Container)),
            ("rename", Some(Kind::Container)),
            ("rename a", None),
            ("ps", None),
            ("nonsense", None),
        ] {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            assert_eq!(wanted(&words), expected, "{words:?}");
        }
    }
}
