//! `volume`.

use serde_json::{Value, json};

use super::inspect::{Kind, inspect_all};
use super::{filters, for_each, print, prune, say, text};
use crate::args::volume::{CreateArgs, LsArgs, RmArgs, VolumeCommand};
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::listing::{Column, Columns, Row, Style};
use crate::parse::environment;
use crate::preferences::Preferences;

const SHOWN: [Column; 2] = [("Driver", "DRIVER"), ("Name", "VOLUME NAME")];
const HIDDEN: [Column; 5] =
    [("Scope", "SCOPE"), ("Mountpoint", "MOUNTPOINT"), ("Labels", "LABELS"), ("Links", "LINKS"), ("Size", "SIZE")];

/// `volume`.
pub(super) async fn volume(client: &Client, command: VolumeCommand) -> CliResult<()> {
    match command {
        VolumeCommand::Ls(args) => ls(client, &args).await,
        VolumeCommand::Create(args) => create(client, &args).await,
        VolumeCommand::Rm(args) => rm(client, &args).await,
        VolumeCommand::Inspect(args) => {
            inspect_all(client, &[Kind::Volume], &args.names, args.format.as_deref(), false).await
        }
        VolumeCommand::Prune(args) => prune::volumes(client, &args).await,
    }
}

async fn ls(client: &Client, args: &LsArgs) -> CliResult<()> {
    let url = Url::new("/volumes").with_some("filters", filters(&args.filter)?.as_deref());
    let answer: Value = client.get(&url).await?;
    for warning in answer["Warnings"].as_array().into_iter().flatten() {
        super::warn(warning.as_str());
    }
    let mut volumes: Vec<&Value> = answer["Volumes"].as_array().into_iter().flatten().collect();
    volumes.sort_by(|one, other| text(one, "Name").cmp(text(other, "Name")));
    let rows: Vec<Row> = volumes.into_iter().map(row).collect();
    let format = Preferences::format(args.format.as_deref(), &client.preferences().volumes_format, args.quiet);
    let style = Style { format, quiet: args.quiet.then_some("Name") };
    print(Columns { shown: &SHOWN, hidden: &HIDDEN }, &rows, style)
}

fn row(volume: &Value) -> Row {
    let mut row = Row::default();
    for name in ["Driver", "Name", "Scope", "Mountpoint"] {
        row.set(name, text(volume, name));
    }
    row.set("Labels", super::labels(&volume["Labels"])).set("Links", "N/A").set("Size", "N/A");
    row
}

async fn create(client: &Client, args: &CreateArgs) -> CliResult<()> {
    let body = json!({
        "Name": args.name.as_deref().unwrap_or_default(),
        "Driver": args.driver.driver.as_deref().unwrap_or("local"),
        "DriverOpts": environment::pairs(&args.driver.options, "option")?,
        "Labels": environment::pairs(&args.driver.label, "label")?,
    });
    let made: Value = client.post(&Url::new("/volumes/create"), &body).await?;
    say(text(&made, "Name"))
}

async fn rm(client: &Client, args: &RmArgs) -> CliResult<()> {
    for_each(&args.names, async |name| {
        client.delete(&Url::named("/volumes/", name, "").with_flag("force", args.force)).await?;
        say(name)
    })
    .await
}
