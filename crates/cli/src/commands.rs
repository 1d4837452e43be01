//! The commands, one job per file.

mod attach;
mod build;
mod commit;
mod complete;
mod completion;
mod container;
mod cp;
mod create;
mod dial;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod history;
mod id_file;
mod images;
mod import;
mod info;
mod inspect;
mod lifecycle;
mod load;
mod login;
mod logs;
mod network;
mod prune;
mod ps;
mod run;
mod save;
mod start;
mod stats;
mod system;
mod template;
mod top;
mod transfer;
mod update;
mod upload;
mod version;
mod volume;

use serde_json::Value;

use crate::args::Command;
use crate::args::management::{BuilderCommand, ContainerCommand, ImageCommand, SystemCommand};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::output::color::{self, Tone};
use crate::output::listing::{self, Columns, Row, Style};

/// Runs a command; gives its exit code.
///
/// # Errors
/// [`CliError`], with the exit code in it.
pub async fn run(client: &Client, command: Command) -> CliResult<u8> {
    match command.short() {
        Command::Run(args) => run::run(client, &args).await,
        Command::Start(args) => start::start(client, &args).await,
        Command::Attach(args) => attach::attach(client, &args).await,
        Command::Exec(args) => exec::exec(client, &args).await,
        Command::Doctor(args) => doctor::doctor(client, &args).await,
        other => with_containers(client, other).await.map(|()| 0),
    }
}

async fn with_containers(client: &Client, command: Command) -> CliResult<()> {
    match command {
        Command::Create(args) => create::create(client, &args).await,
        Command::Ps(args) => ps::ps(client, &args).await,
        Command::Logs(args) => logs::logs(client, &args).await,
        Command::Wait(args) => lifecycle::wait(client, &args).await,
        Command::Kill(args) => lifecycle::kill(client, &args).await,
        Command::Stop(args) => lifecycle::stop(client, &args, "stop").await,
        Command::Restart(args) => lifecycle::stop(client, &args, "restart").await,
        Command::Rm(args) => lifecycle::rm(client, &args).await,
        Command::Top(args) => top::top(client, &args).await,
        Command::Stats(args) => stats::stats(client, &args).await,
        Command::Pause(args) => lifecycle::simple(client, &args, "pause").await,
        Command::Unpause(args) => lifecycle::simple(client, &args, "unpause").await,
        Command::Rename(args) => lifecycle::rename(client, &args).await,
        Command::Update(args) => update::update(client, &args).await,
        Command::Port(args) => update::port(client, &args).await,
        Command::Inspect(args) => inspect::inspect(client, &args).await,
        Command::Cp(args) => cp::cp(client, &args).await,
        Command::Diff(args) => diff::diff(client, &args).await,
        Command::Export(args) => export::export(client, &args).await,
        Command::Commit(args) => commit::commit(client, &args).await,
        Command::Container(ContainerCommand::Prune(args)) => prune::containers(client, &args).await,
        other => with_images(client, other).await,
    }
}

async fn with_images(client: &Client, command: Command) -> CliResult<()> {
    match command {
        Command::Build(args) => build::build(client, &args).await,
        Command::Images(args) => images::images(client, &args).await,
        Command::Pull(args) => transfer::pull_image(client, &args).await,
        Command::Push(args) => transfer::push(client, &args).await,
        Command::Search(args) => transfer::search(client, &args).await,
        Command::Login(args) => login::login(client, &args).await,
        Command::Logout(args) => login::logout(&args),
        Command::Load(args) => load::load(client, &args).await,
        Command::Import(args) => import::import(client, &args).await,
        Command::Rmi(args) => images::rmi(client, &args).await,
        Command::Tag(args) => images::tag(client, &args).await,
        Command::History(args) => history::history(client, &args).await,
        Command::Save(args) => save::save(client, &args).await,
        Command::Image(ImageCommand::Prune(args)) => prune::images(client, &args).await,
        other => with_engine(client, other).await,
    }
}

async fn with_engine(client: &Client, command: Command) -> CliResult<()> {
    match command {
        Command::Complete(args) => complete::complete(client, &args).await,
        Command::Events(args) => events::events(client, &args).await,
        Command::Version(args) => version::version(client, &args).await,
        Command::Info(args) => info::info(client, &args).await,
        Command::Network(command) => network::network(client, command).await,
        Command::Volume(command) => volume::volume(client, command).await,
        Command::Builder(BuilderCommand::Prune(args)) => prune::builds(client, &args).await,
        Command::System(SystemCommand::Df(args)) => system::df(client, &args).await,
        Command::System(SystemCommand::Prune(args)) => prune::system(client, &args).await,
        Command::System(SystemCommand::Check(args)) => system::check(client, &args).await,
        Command::System(SystemCommand::DialStdio) => dial::dial(client).await,
        Command::Template(command) => template::template(client, &command).await,
        Command::Completion(args) => completion::completion(&args),
        Command::Man(args) => completion::manual(&args),
        other => Err(CliError::Usage(format!("{other:?} has no short form"))),
    }
}

/// Writes a line, or several, to standard output.
fn say(text: &str) -> CliResult<()> {
    Ok(listing::say(text)?)
}

/// Writes a list to standard output.
fn print(columns: Columns<'_>, rows: &[Row], style: Style<'_>) -> CliResult<()> {
    Ok(listing::print(columns, rows, style)?)
}

/// Does something to each of several things. Each failure is told; the last code is that of a failure if there was one.
async fn for_each(names: &[String], mut act: impl AsyncFnMut(&str) -> CliResult<()>) -> CliResult<()> {
    let mut failed = false;
    for name in names {
        if let Err(error) = act(name).await {
            crate::report(&error);
            failed = true;
        }
    }
    if failed { Err(CliError::Silent(1)) } else { Ok(()) }
}

/// The `filters` parameter for `KEY=VALUE` flags.
fn filters(list: &[String]) -> CliResult<Option<String>> {
    let mut map = serde_json::Map::new();
    for text in list {
        let invalid = || CliError::Usage(format!("invalid filter {text:?}: it has the form KEY=VALUE"));
        let (key, value) = text.split_once('=').ok_or_else(invalid)?;
        let values = map.entry(key.trim().to_lowercase()).or_insert_with(|| serde_json::json!({}));
        values[value.trim()] = Value::Bool(true);
    }
    Ok((!map.is_empty()).then(|| Value::Object(map).to_string()))
}

/// Labels as `a=b,c=d`.
fn labels(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten();
    pairs.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
}

/// Tells a warning of the engine on standard error.
fn warn(warning: Option<&str>) {
    if let Some(warning) = warning {
        eprintln!("{} {warning}", color::paint("WARNING:", Tone::Warn, color::on_stderr()));
    }
}

/// The first twelve digits of an id, without its algorithm.
fn short_id(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

/// Text cut to a width, with an ellipsis where something was cut.
fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A text field of an answer; empty where it is missing.
fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_maps_of_maps() {
        let list: Vec<String> = ["label=a=b", "label=c", "status=running"].map(str::to_owned).into();
        let sent = filters(&list).unwrap().unwrap();
        let value: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(value, serde_json::json!({"label": {"a=b": true, "c": true}, "status": {"running": true}}));
        assert_eq!(filters(&[]).unwrap(), None);
        assert!(filters(&["nope".into()]).is_err());
    }

    #[test]
    fn long_things_are_cut() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!((ellipsis("abcdef", 4), ellipsis("abcd", 4)), ("abc…".to_owned(), "abcd".to_owned()));
    }
}
