//! `ps`.

use serde_json::Value;

use super::{ellipsis, filters, print, short_id, text};
use crate::args::process::PsArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::color::Tone;
use crate::output::listing::{Column, Columns, Row, Style};
use crate::output::quantity::decimal_size;
use crate::output::time;
use crate::preferences::Preferences;

/// Characters of a command that are shown.
const COMMAND_WIDTH: usize = 20;

const SHOWN: [Column; 8] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Isolation", "ISOLATION"),
    ("Names", "NAMES"),
];
const HIDDEN: [Column; 7] = [
    ("CreatedAt", "CREATED AT"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("Size", "SIZE"),
    ("State", "STATE"),
];

/// `ps`.
pub(super) async fn ps(client: &Client, args: &PsArgs) -> CliResult<()> {
    let last = if args.latest { Some(1) } else { args.last };
    let url = Url::new("/containers/json")
        .with_flag("all", args.all)
        .with_flag("size", args.size)
        .with_some("limit", last.map(|count| count.to_string()).as_deref())
        .with_some("filters", filters(&args.filter)?.as_deref());
    let containers: Vec<Value> = client.get(&url).await?;
    let rows: Vec<Row> = containers.iter().map(|container| row(container, args.no_trunc)).collect();
    let mut shown = SHOWN.to_vec();
    if args.size {
        shown.push(("Size", "SIZE"));
    }
    let format = Preferences::format(args.format.as_deref(), &client.preferences().ps_format, args.quiet);
    let style = Style { format, quiet: args.quiet.then_some("ID") };
    print(Columns { shown: &shown, hidden: &HIDDEN }, &rows, style)
}

fn row(container: &Value, full: bool) -> Row {
    let mut row = Row::default();
    let (id, image, state) = (text(container, "Id"), text(container, "Image"), text(container, "State"));
    let names: Vec<&str> = container["Names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|name| name.trim_start_matches('/'))
        .collect();
    let command = text(container, "Command");
    let created = container["Created"].as_i64().unwrap_or_default();
    let isolation = [&container["Isolation"], &container["HostConfig"]["Isolation"]];
    let isolation = isolation.into_iter().find_map(Value::as_str).unwrap_or_default();
    row.set("ID", if full { id.to_owned() } else { short_id(id) })
        .set("Image", if full || !image.starts_with("sha256:") { image.to_owned() } else { short_id(image) })
        .set("Command", format!("\"{}\"", if full { command.to_owned() } else { ellipsis(command, COMMAND_WIDTH) }))
        .set("RunningFor", time::ago(created))
        .set("CreatedAt", time::utc(created))
        .set("Status", text(container, "Status"))
        .set("State", state)
        .set("Ports", ports(&container["Ports"]))
        .set("Isolation", isolation)
        .set("Names", names.join(","))
        .set("Labels", labels(&container["Labels"]))
        .set("Mounts", mounts(&container["Mounts"]))
        .set("LocalVolumes", "0")
        .set("Networks", networks(&container["NetworkSettings"]["Networks"]))
        .set("Size", size(container));
    match state {
        "running" => row.tone("Status", Tone::Good),
        "paused" | "restarting" => row.tone("Status", Tone::Warn),
        "dead" => row.tone("Status", Tone::Bad),
        _ => row.tone("Status", Tone::Dim),
    };
    row
}

fn labels(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    pairs.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
}

fn mounts(mounts: &Value) -> String {
    let place = |mount: &Value| {
        [text(mount, "Name"), text(mount, "Source")].into_iter().find(|text| !text.is_empty()).map(str::to_owned)
    };
    mounts.as_array().into_iter().flatten().filter_map(place).collect::<Vec<_>>().join(",")
}

fn networks(networks: &Value) -> String {
    networks.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",")
}

fn ports(ports: &Value) -> String {
    let one = |port: &Value| {
        let inside = format!("{}/{}", port["PrivatePort"], text(port, "Type"));
        match port["PublicPort"].as_u64() {
            Some(public) => format!("{}:{public}->{inside}", text(port, "IP")),
            None => inside,
        }
    };
    ports.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
}

fn size(container: &Value) -> String {
    let bytes = |name: &str| container[name].as_f64().unwrap_or_default();
    match container.get("SizeRootFs") {
        Some(_) => format!("{} (virtual {})", decimal_size(bytes("SizeRw")), decimal_size(bytes("SizeRootFs"))),
        None => decimal_size(bytes("SizeRw")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_a_row() {
        let container = json!({
            "Id": "0123456789abcdef", "Names": ["/web"], "Image": "busybox", "Command": "sh -c 'a very long command'",
            "Created": 1, "State": "running", "Status": "Up 5 seconds", "Isolation": "hyperv", "Labels": {"a": "b"},
            "Ports": [{"PrivatePort": 80, "Type": "tcp"}, {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
            "NetworkSettings": {"Networks": {"none": {}}}, "SizeRw": 5, "SizeRootFs": 1000,
        });
        let row = row(&container, false);
        let shown = format!("{row:?}");
        for part in [
            "0123456789ab\"",
            "\\\"sh -c 'a very long …\\\"",
            "hyperv",
            "80/tcp, 0.0.0.0:8080->80/tcp",
            "a=b",
            "5B (virtual 1kB)",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
}
