//! `wait`, `kill`, `stop`, `restart`, `rm`, `pause`, `unpause`, `rename`.

use super::container::Waiting;
use super::{for_each, say};
use crate::args::process::{KillArgs, Names, RenameArgs, RmArgs, StopArgs};
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;

/// `wait`.
pub(super) async fn wait(client: &Client, args: &Names) -> CliResult<()> {
    for_each(&args.names, async |name| {
        let code = Waiting::begin(client, name, "not-running").await?.code().await?;
        say(&code.to_string())
    })
    .await
}

/// `kill`.
pub(super) async fn kill(client: &Client, args: &KillArgs) -> CliResult<()> {
    for_each(&args.names.names, async |name| {
        client.command(&Url::container(name, "/kill").with_some("signal", args.signal.as_deref())).await?;
        say(name)
    })
    .await
}

/// `stop` and `restart`.
pub(super) async fn stop(client: &Client, args: &StopArgs, verb: &str) -> CliResult<()> {
    let time = args.time.map(|seconds| seconds.to_string());
    for_each(&args.names.names, async |name| {
        let url = Url::container(name, &format!("/{verb}")).with_some("t", time.as_deref());
        client.command(&url.with_some("signal", args.signal.as_deref())).await?;
        say(name)
    })
    .await
}

/// `rm`.
pub(super) async fn rm(client: &Client, args: &RmArgs) -> CliResult<()> {
    for_each(&args.names.names, async |name| {
        let url = Url::container(name, "")
            .with_flag("force", args.force)
            .with_flag("v", args.volumes)
            .with_flag("link", args.link);
        client.delete(&url).await?;
        say(name)
    })
    .await
}

/// `pause` and `unpause`.
pub(super) async fn simple(client: &Client, args: &Names, verb: &str) -> CliResult<()> {
    for_each(&args.names, async |name| {
        client.command(&Url::container(name, &format!("/{verb}"))).await?;
        say(name)
    })
    .await
}

/// `rename`.
pub(super) async fn rename(client: &Client, args: &RenameArgs) -> CliResult<()> {
    Ok(client.command(&Url::container(&args.container, "/rename").with("name", &args.new_name)).await?)
}
