//! `pull` and `push`, and how far they are.

use std::collections::HashMap;
use std::io::IsTerminal;

use hyper::Method;
use indicatif::{MultiProgress, ProgressBar};
use serde_json::Value;

use super::{say, text};
use crate::args::registry::{PullArgs, PushArgs, SearchArgs};
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::lines::JsonLines;
use crate::client::url::Url;
use crate::credentials;
use crate::error::{CliError, CliResult};
use crate::output::progress;

/// How an image is pulled.
pub(super) struct Pull<'a> {
    /// The image.
    pub(super) image: &'a str,
    /// All tags.
    pub(super) all_tags: bool,
    /// For which platform.
    pub(super) platform: Option<&'a str>,
    /// Where to say how far it is.
    pub(super) say: Say,
}

/// Where to say how far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Say {
    Nothing,
    ToOutput,
    /// For a command whose output is something else.
    ToError,
}

/// `pull`.
pub(super) async fn pull_image(client: &Client, args: &PullArgs) -> CliResult<()> {
    if args.all_tags && has_version(&args.image) {
        return Err(CliError::Usage("tag can't be used with --all-tags/-a".into()).with_code(1));
    }
    let say_how = if args.quiet { Say::Nothing } else { Say::ToOutput };
    if !args.quiet && !args.all_tags && !has_version(&args.image) {
        say("Using default tag: latest")?;
    }
    let platform = args.platform.as_deref();
    pull(client, &Pull { image: &args.image, all_tags: args.all_tags, platform, say: say_how }).await?;
    say(&full_name(&args.image, args.all_tags))
}

/// Pulls an image.
pub(super) async fn pull(client: &Client, pull: &Pull<'_>) -> CliResult<()> {
    let url = Url::new("/images/create").with("fromImage", pull.image);
    let url = if pull.all_tags || has_version(pull.image) { url } else { url.with("tag", "latest") };
    let url = url.with_some("platform", pull.platform);
    let auth = credentials::header_for_image(pull.image)?;
    let mut lines = client.lines_as(Method::POST, &url, RequestBody::empty(), &auth).await?;
    follow(&mut lines, pull.say).await
}

/// `push`.
pub(super) async fn push(client: &Client, args: &PushArgs) -> CliResult<()> {
    let (name, tag) = split_tag(&args.image);
    if args.all_tags && tag.is_some() {
        return Err(CliError::Usage("tag can't be used with --all-tags/-a".into()).with_code(1));
    }
    if !args.quiet && !args.all_tags && tag.is_none() {
        say("Using default tag: latest")?;
    }
    let url = Url::image(name, "/push");
    let url = if args.all_tags { url } else { url.with("tag", tag.unwrap_or("latest")) };
    let auth = credentials::header_for_image(&args.image)?;
    let mut lines = client.lines_as(Method::POST, &url, RequestBody::empty(), &auth).await?;
    follow(&mut lines, if args.quiet { Say::Nothing } else { Say::ToOutput }).await?;
    if args.quiet { say(&full_name(&args.image, args.all_tags)) } else { Ok(()) }
}

/// `search`.
pub(super) async fn search(client: &Client, args: &SearchArgs) -> CliResult<()> {
    let found: Value = client.get(&Url::new("/images/search").with("term", &args.term)).await?;
    say(&found.to_string())
}

/// True if an image's name has a tag or a digest.
fn has_version(image: &str) -> bool {
    image.rsplit('/').next().is_some_and(|last| last.contains([':', '@']))
}

fn split_tag(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

/// The name in full, as docker prints it at the end.
fn full_name(image: &str, all_tags: bool) -> String {
    let has_domain = image.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost");
    let prefix = match (has_domain, image.contains('/')) {
        (true, _) => "",
        (false, true) => "docker.io/",
        (false, false) => "docker.io/library/",
    };
    let suffix = if all_tags || has_version(image) { "" } else { ":latest" };
    format!("{prefix}{image}{suffix}")
}

/// Says how far something is until it ends: bars on a terminal, lines elsewhere.
async fn follow(lines: &mut JsonLines, how: Say) -> CliResult<()> {
    let on_terminal = match how {
        Say::ToOutput => std::io::stdout().is_terminal() && std::io::stderr().is_terminal(),
        Say::ToError => std::io::stderr().is_terminal(),
        Say::Nothing => false,
    };
    let mut bars = on_terminal.then(Bars::new);
    let mut outcome = Ok(());
    while let Some(line) = lines.next().await? {
        if let Some(message) = line["errorDetail"]["message"].as_str() {
            outcome = Err(CliError::Failed(message.to_owned()));
            break;
        }
        let (status, id) = (text(&line, "status"), text(&line, "id"));
        if status.is_empty() || how == Say::Nothing {
            continue;
        }
        // Lines about a layer have the detail, even if it is empty.
        let about_layer = !id.is_empty() && line["progressDetail"].is_object();
        match &mut bars {
            Some(bars) if about_layer => bars.show(id, status, &line["progressDetail"]),
            Some(bars) => bars.all.suspend(|| print(how, id, status))?,
            // How far something is would be a new line each time.
            None if line["progressDetail"]["current"].is_u64() => {}
            None => print(how, id, status)?,
        }
    }
    if let Some(bars) = bars {
        bars.finish(outcome.is_ok());
    }
    outcome
}

fn print(how: Say, id: &str, status: &str) -> CliResult<()> {
    let line = if id.is_empty() { status.to_owned() } else { format!("{id}: {status}") };
    match how {
        Say::ToError => {
            eprintln!("{line}");
            Ok(())
        }
        _ => say(&line),
    }
}

/// One bar for each layer, in the order in which they were told of.
struct Bars {
    all: MultiProgress,
    of: HashMap<String, ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        Self { all: MultiProgress::new(), of: HashMap::new() }
    }

    fn show(&mut self, id: &str, status: &str, detail: &Value) {
        let bar = self.of.entry(id.to_owned()).or_insert_with(|| {
            let bar = self.all.add(progress::layer_line());
            bar.set_prefix(id.to_owned());
            bar
        });
        match (detail["current"].as_u64(), detail["total"].as_u64()) {
            (Some(current), Some(total)) => {
                if bar.length() != Some(total) {
                    bar.set_length(total);
                    bar.set_style(progress::layer_bar_style());
                }
                bar.set_position(current);
            }
            _ => bar.set_style(progress::layer_line_style()),
        }
        bar.set_message(status.to_owned());
    }

    /// What succeeded stays on the screen.
    fn finish(self, succeeded: bool) {
        for bar in self.of.values() {
            if succeeded { bar.abandon() } else { bar.finish_and_clear() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_prints_them() {
        for (image, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("localhost/app@sha256:0", "localhost/app@sha256:0"),
        ] {
            assert_eq!(full_name(image, false), expected);
        }
        assert_eq!(split_tag("127.0.0.1:5000/app"), ("127.0.0.1:5000/app", None));
        assert_eq!(split_tag("127.0.0.1:5000/app:x"), ("127.0.0.1:5000/app", Some("x")));
    }
}
