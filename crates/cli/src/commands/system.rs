//! `system df` and `system check`.

use hyper::Method;
use serde_json::Value;

use super::{print, say, short_id, text};
use crate::args::storage::{CheckArgs, DfArgs};
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::color::Tone;
use crate::output::listing::{Column, Columns, Row, Style};
use crate::output::progress;
use crate::output::quantity::decimal_size;
use crate::output::time;

const KINDS: [Column; 5] =
    [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];
const IMAGES: [Column; 8] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const CONTAINERS: [Column; 6] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("Size", "SIZE"),
    ("Status", "STATUS"),
    ("Names", "NAMES"),
];
const VOLUMES: [Column; 3] = [("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")];
const FINDINGS: [Column; 5] =
    [("Kind", "KIND"), ("Subject", "SUBJECT"), ("Fault", "FAULT"), ("Images", "IMAGES"), ("Remedy", "REMEDY")];

/// `system df`.
pub(super) async fn df(client: &Client, args: &DfArgs) -> CliResult<()> {
    let usage: Value = client.get(&Url::new("/system/df")).await?;
    if args.verbose {
        say("Images space usage:\n")?;
        let images: Vec<Row> = list(&usage, "Images").iter().map(image).collect();
        print(Columns { shown: &IMAGES, hidden: &[] }, &images, Style { format: None, quiet: None })?;
        say("\nContainers space usage:\n")?;
        let containers: Vec<Row> = list(&usage, "Containers").iter().map(container).collect();
        print(Columns { shown: &CONTAINERS, hidden: &[] }, &containers, Style { format: None, quiet: None })?;
        say("\nLocal Volumes space usage:\n")?;
        let volumes: Vec<Row> = list(&usage, "Volumes").iter().map(volume).collect();
        return print(Columns { shown: &VOLUMES, hidden: &[] }, &volumes, Style { format: None, quiet: None });
    }
    let rows = [
        kind("Images", image_totals(&usage)),
        kind("Containers", container_totals(&usage)),
        kind("Local Volumes", volume_totals(&usage)),
    ];
    print(Columns { shown: &KINDS, hidden: &[] }, &rows, Style { format: args.format.as_deref(), quiet: None })
}

/// Count, count of those in use, bytes, bytes that would be free if what nobody uses were gone.
type Totals = (usize, usize, f64, f64);

fn image_totals(usage: &Value) -> Totals {
    let images = list(usage, "Images");
    let used: Vec<&Value> = images.iter().filter(|image| number(image, "Containers") > 0.0).collect();
    // What an image in use shares may be in use elsewhere: only its own part counts as used, as docker counts.
    let unique: f64 = used.iter().map(|image| number(image, "Size") - number(image, "SharedSize")).sum();
    let total = number(usage, "LayersSize");
    (images.len(), used.len(), total, total - unique)
}

fn container_totals(usage: &Value) -> Totals {
    let containers = list(usage, "Containers");
    let runs = |container: &&Value| matches!(text(container, "State"), "running" | "paused" | "restarting");
    let (total, active) = (containers.len(), containers.iter().filter(runs).count());
    let bytes = |one: &Value| number(one, "SizeRw");
    (total, active, sum(containers.iter().map(bytes)), sum(containers.iter().filter(|one| !runs(one)).map(bytes)))
}

fn volume_totals(usage: &Value) -> Totals {
    let volumes = list(usage, "Volumes");
    let used = |volume: &&Value| number(&volume["UsageData"], "RefCount") > 0.0;
    let bytes = |volume: &Value| number(&volume["UsageData"], "Size");
    let (total, active) = (volumes.len(), volumes.iter().filter(used).count());
    (total, active, sum(volumes.iter().map(bytes)), sum(volumes.iter().filter(|one| !used(one)).map(bytes)))
}

/// Rust's own sum of no numbers is minus zero.
fn sum(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(0.0, |sum, number| sum + number)
}

fn kind(name: &str, (count, active, bytes, free): Totals) -> Row {
    let mut row = Row::default();
    let percent = if bytes > 0.0 { format!(" ({:.0}%)", (free * 100.0 / bytes).floor()) } else { String::new() };
    row.set("Type", name)
        .set("TotalCount", count.to_string())
        .set("Active", active.to_string())
        .set("Size", decimal_size(bytes))
        .set("Reclaimable", decimal_size(free) + &percent);
    row
}

fn image(image: &Value) -> Row {
    let name = image["RepoTags"][0].as_str().and_then(|name| name.rsplit_once(':')).unwrap_or(("<none>", "<none>"));
    let (size, shared) = (number(image, "Size"), number(image, "SharedSize"));
    let mut row = Row::default();
    row.set("Repository", name.0)
        .set("Tag", name.1)
        .set("ID", short_id(text(image, "Id")))
        .set("CreatedSince", time::ago(image["Created"].as_i64().unwrap_or_default()))
        .set("Size", decimal_size(size))
        .set("SharedSize", decimal_size(shared))
        .set("UniqueSize", decimal_size(size - shared))
        .set("Containers", image["Containers"].clone());
    row
}

fn container(container: &Value) -> Row {
    let mut row = Row::default();
    row.set("ID", short_id(text(container, "Id")))
        .set("Image", text(container, "Image"))
        .set("Command", format!("\"{}\"", super::ellipsis(text(container, "Command"), 18)))
        .set("Size", decimal_size(number(container, "SizeRw")))
        .set("Status", text(container, "Status"))
        .set("Names", container["Names"][0].as_str().unwrap_or_default().trim_start_matches('/'));
    row
}

fn volume(volume: &Value) -> Row {
    let mut row = Row::default();
    row.set("Name", text(volume, "Name"))
        .set("Links", volume["UsageData"]["RefCount"].clone())
        .set("Size", decimal_size(number(&volume["UsageData"], "Size")));
    row
}

/// `system check`. The code is 1 while anything is left that is wrong.
pub(super) async fn check(client: &Client, args: &CheckArgs) -> CliResult<()> {
    let url = Url::new("/bulkhead/system/check").with_flag("repair", args.repair);
    let asking = async {
        let mut answer = client.lines(Method::POST, &url, RequestBody::empty()).await?;
        answer.next().await?.ok_or_else(|| CliError::Answer("it is empty".into()))
    };
    let report = progress::patiently(asking, async { "reading all layers".to_owned() }).await?;
    let findings = list(&report, "Findings");
    let rows: Vec<Row> = findings.iter().map(finding).collect();
    if !rows.is_empty() || args.format.is_some() {
        let style = Style { format: args.format.as_deref(), quiet: None };
        print(Columns { shown: &FINDINGS, hidden: &[("Repaired", "REPAIRED")] }, &rows, style)?;
    }
    let left = findings.iter().filter(|finding| finding["Repaired"] != true).count();
    if args.format.is_none() {
        let count = |name: &str| report[name].as_u64().unwrap_or_default();
        let bytes = decimal_size(number(&report, "LayerBytes"));
        let (layers, images, containers) = (count("Layers"), count("Images"), count("Containers"));
        let verdict = match (findings.len(), left) {
            (0, _) => "all well".to_owned(),
            (found, 0) => format!("{found} found wrong and repaired"),
            (found, left) => format!("{found} found wrong, {left} left"),
        };
        say(&format!("{layers} layers ({bytes}), {images} images, {containers} containers: {verdict}"))?;
    }
    if left == 0 { Ok(()) } else { Err(CliError::Silent(1)) }
}

fn finding(finding: &Value) -> Row {
    let images: Vec<&str> = finding["Images"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let repaired = finding["Repaired"] == true;
    let mut row = Row::default();
    for (field, _) in FINDINGS {
        row.set(field, text(finding, field));
    }
    let subject = match text(finding, "Subject") {
        digest if digest.starts_with("sha256:") => short_id(digest),
        other => other.to_owned(),
    };
    row.set("Subject", subject)
        .set("Images", images.join(", "))
        .set("Repaired", repaired)
        .tone("Remedy", if repaired { Tone::Good } else { Tone::Bad });
    row
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_shared_base_counts_once() {
        let image = |containers: u64| json!({"Size": 110, "SharedSize": 100, "Containers": containers});
        let usage = json!({
            "LayersSize": 120, "Images": [image(1), image(0)],
            "Containers": [{"State": "running", "SizeRw": 5}, {"State": "exited", "SizeRw": 7}],
            "Volumes": [{"UsageData": {"RefCount": 2, "Size": 3}}, {"UsageData": {"RefCount": 0, "Size": 4}}],
        });
        assert_eq!(image_totals(&usage), (2, 1, 120.0, 110.0));
        assert_eq!(container_totals(&usage), (2, 1, 12.0, 7.0));
        assert_eq!(volume_totals(&usage), (2, 1, 7.0, 4.0));
        assert_eq!(decimal_size(container_totals(&json!({})).2), "0B");
        assert!(format!("{:?}", kind("Images", image_totals(&usage))).contains("110B (91%)"));
    }

    #[test]
    fn a_finding_says_what_is_wrong_and_what_helps() {
        let row = finding(&json!({
            "Kind": "layer", "Subject": format!("sha256:{}", "ab".repeat(32)), "Fault": "gone", "Images": ["a", "b"],
            "Remedy": "load a", "Repaired": false,
        }));
        let shown = format!("{row:?}");
        for part in ["\"abababababab\"", "a, b", "load a"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
