//! `prune` of containers, images, networks, volumes, builds, and of all of them.

use std::io::{BufRead, Write};

use hyper::Method;
use serde_json::Value;

use super::{filters, say};
use crate::args::management::BuilderPruneArgs;
use crate::args::storage::{ImagePruneArgs, PruneArgs, SystemPruneArgs};
use crate::args::volume::VolumePruneArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::quantity::decimal_size;

/// `container prune`.
pub(super) async fn containers(client: &Client, args: &PruneArgs) -> CliResult<()> {
    if !args.force && !agreed("This will remove all stopped containers.")? {
        return Ok(());
    }
    reclaimed(prune_containers(client, &args.filter).await?)
}

/// `image prune`.
pub(super) async fn images(client: &Client, args: &ImagePruneArgs) -> CliResult<()> {
    let what = if args.all {
        "This will remove all images without at least one container associated to them."
    } else {
        "This will remove all dangling images."
    };
    if !args.prune.force && !agreed(what)? {
        return Ok(());
    }
    reclaimed(prune_images(client, args).await?)
}

/// `network prune`.
pub(super) async fn networks(client: &Client, args: &PruneArgs) -> CliResult<()> {
    if !args.force && !agreed("This will remove all custom networks not used by at least one container.")? {
        return Ok(());
    }
    prune_networks(client, &args.filter).await
}

/// `volume prune`.
pub(super) async fn volumes(client: &Client, args: &VolumePruneArgs) -> CliResult<()> {
    let what = if args.all { "all" } else { "anonymous" };
    let what = format!("This will remove {what} local volumes not used by at least one container.");
    if !args.prune.force && !agreed(&what)? {
        return Ok(());
    }
    reclaimed(prune_volumes(client, args).await?)
}

/// `builder prune`.
pub(super) async fn builds(client: &Client, args: &BuilderPruneArgs) -> CliResult<()> {
    let what = if args.all { "all build cache" } else { "all dangling build cache" };
    if !args.prune.force && !agreed(&format!("This will remove {what}."))? {
        return Ok(());
    }
    let keep = args.keep_storage.map(|bytes| bytes.to_string());
    reclaimed(prune_builds(client, args.all, keep.as_deref(), &args.prune.filter).await?)
}

/// `system prune`.
pub(super) async fn system(client: &Client, args: &SystemPruneArgs) -> CliResult<()> {
    let (all, filter) = (args.image.all, &args.image.prune.filter);
    let images =
        if all { "all images without at least one container associated to them" } else { "all dangling images" };
    let volumes = if args.volumes { "\n  - all anonymous volumes not used by at least one container" } else { "" };
    let what = format!(
        "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container{volumes}\n  - {images}\n  - {} build cache\n",
        if all { "all" } else { "unused" }
    );
    if !args.image.prune.force && !agreed(&what)? {
        return Ok(());
    }
    let mut bytes = prune_containers(client, filter).await?;
    prune_networks(client, filter).await?;
    if args.volumes {
        let prune = PruneArgs { force: true, filter: filter.clone() };
        bytes += prune_volumes(client, &VolumePruneArgs { all: false, prune }).await?;
    }
    bytes += prune_images(client, &args.image).await?;
    bytes += prune_builds(client, all, None, filter).await?;
    reclaimed(bytes)
}

async fn prune_networks(client: &Client, filter: &[String]) -> CliResult<()> {
    let pruned = ask(client, "/networks/prune", filter).await?;
    list("Deleted Networks:", pruned["NetworksDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str))
}

async fn prune_volumes(client: &Client, args: &VolumePruneArgs) -> CliResult<f64> {
    let mut filter = args.prune.filter.clone();
    filter.extend(args.all.then(|| "all=true".to_owned()));
    let pruned = ask(client, "/volumes/prune", &filter).await?;
    list("Deleted Volumes:", pruned["VolumesDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str))?;
    Ok(pruned["SpaceReclaimed"].as_f64().unwrap_or_default())
}

async fn prune_builds(client: &Client, all: bool, keep: Option<&str>, filter: &[String]) -> CliResult<f64> {
    let url = Url::new("/build/prune")
        .with_flag("all", all)
        .with_some("keep-storage", keep)
        .with_some("filters", filters(&client.preferences().prune_filters(filter))?.as_deref());
    let pruned = ask_url(client, &url).await?;
    let deleted = pruned["CachesDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str);
    list("Deleted build cache objects:", deleted)?;
    Ok(pruned["SpaceReclaimed"].as_f64().unwrap_or_default())
}

async fn prune_containers(client: &Client, filter: &[String]) -> CliResult<f64> {
    let pruned = ask(client, "/containers/prune", filter).await?;
    list(
        "Deleted Containers:",
        pruned["ContainersDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str),
    )?;
    Ok(pruned["SpaceReclaimed"].as_f64().unwrap_or_default())
}

async fn prune_images(client: &Client, args: &ImagePruneArgs) -> CliResult<f64> {
    let mut filter = args.prune.filter.clone();
    filter.push(format!("dangling={}", !args.all));
    let pruned = ask(client, "/images/prune", &filter).await?;
    let deleted = pruned["ImagesDeleted"].as_array().into_iter().flatten();
    let lines: Vec<String> = deleted
        .filter_map(|one| match (one["Untagged"].as_str(), one["Deleted"].as_str()) {
            (Some(name), _) => Some(format!("untagged: {name}")),
            (_, Some(id)) => Some(format!("deleted: {id}")),
            (None, None) => None,
        })
        .collect();
    list("Deleted Images:", lines.iter().map(String::as_str))?;
    Ok(pruned["SpaceReclaimed"].as_f64().unwrap_or_default())
}

async fn ask(client: &Client, path: &str, filter: &[String]) -> CliResult<Value> {
    let mut filter = client.preferences().prune_filters(filter);
    if path == "/volumes/prune" {
        // Volumes have no age, so what is said of the age of others is not said to them.
        filter.retain(|text| !text.starts_with("until="));
    }
    ask_url(client, &Url::new(path).with_some("filters", filters(&filter)?.as_deref())).await
}

async fn ask_url(client: &Client, url: &Url) -> CliResult<Value> {
    let mut answer = client.lines(Method::POST, url, RequestBody::empty()).await?;
    answer.next().await?.ok_or_else(|| CliError::Answer("it is empty".into()))
}

fn list<'a>(heading: &str, lines: impl Iterator<Item = &'a str>) -> CliResult<()> {
    let lines: Vec<&str> = lines.collect();
    if lines.is_empty() { Ok(()) } else { say(&format!("{heading}\n{}\n", lines.join("\n"))) }
}

fn reclaimed(bytes: f64) -> CliResult<()> {
    say(&format!("Total reclaimed space: {}", decimal_size(bytes)))
}

/// Asks the user, as docker does.
fn agreed(what: &str) -> CliResult<bool> {
    let failed = CliError::local("cannot ask");
    let mut out = std::io::stdout().lock();
    let asked = write!(out, "WARNING! {what}\nAre you sure you want to continue? [y/N] ").and_then(|()| out.flush());
    let mut answer = String::new();
    asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer)).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unwanted_label_is_a_filter_of_its_own() {
        let sent = filters(&["label!=a=b".into(), "until=24h".into()]).unwrap().unwrap();
        let value: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(value, serde_json::json!({"label!": {"a=b": true}, "until": {"24h": true}}));
    }
}
