//! `stats`: once, or a table that is drawn again and again.

mod sample;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::{print, short_id, text};
use crate::args::process::StatsArgs;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::listing::{Column, Columns, Row, Style};
use crate::preferences::Preferences;
use sample::Sample;

/// Time between two drawings.
const INTERVAL: Duration = Duration::from_secs(1);

const SHOWN: [Column; 8] = [
    ("Container", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// The last sample of each container, by id.
type Samples = Arc<Mutex<BTreeMap<String, Option<Sample>>>>;

/// `stats`.
pub(super) async fn stats(client: &Client, args: &StatsArgs) -> CliResult<()> {
    if args.no_stream {
        return once(client, args).await;
    }
    let samples: Samples = Arc::default();
    loop {
        let wanted = containers(client, args).await?;
        follow(client, &samples, &wanted);
        tokio::time::sleep(INTERVAL).await;
        let rows: Vec<Row> = {
            let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.iter().map(|id| row(id, samples.get(id).and_then(Option::as_ref), args.no_trunc)).collect()
        };
        draw(client, args, &rows)?;
    }
}

/// The full ids of the containers that are wanted.
async fn containers(client: &Client, args: &StatsArgs) -> CliResult<Vec<String>> {
    if args.names.is_empty() {
        let all: Vec<Value> = client.get(&Url::new("/containers/json").with_flag("all", args.all)).await?;
        return Ok(all.iter().map(|container| text(container, "Id").to_owned()).collect());
    }
    let mut ids = Vec::new();
    for name in &args.names {
        let container: Value = client.get(&Url::container(name, "/json")).await?;
        ids.push(text(&container, "Id").to_owned());
    }
    Ok(ids)
}

/// Begins to listen to containers that nobody listens to yet, and forgets those that are gone.
fn follow(client: &Client, samples: &Samples, wanted: &[String]) {
    let mut known = samples.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|id, _| wanted.contains(id));
    for id in wanted {
        if known.contains_key(id) {
            continue;
        }
        known.insert(id.clone(), None);
        let (client, samples, id) = (client.clone(), Arc::clone(samples), id.clone());
        tokio::spawn(async move {
            // A container that ends has no more samples; it is asked again if it is still listed.
            let _ = listen(&client, &samples, &id).await;
            samples.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }
}

async fn listen(client: &Client, samples: &Samples, id: &str) -> CliResult<()> {
    let url = Url::container(id, "/stats").with("stream", "1");
    let mut lines = client.lines(Method::GET, &url, RequestBody::empty()).await?;
    while let Some(line) = lines.next().await? {
        let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = samples.get_mut(id) {
            *place = Some(Sample::read(&line));
        }
    }
    Ok(())
}

async fn once(client: &Client, args: &StatsArgs) -> CliResult<()> {
    let wanted = containers(client, args).await?;
    let ask = async |id: &String| -> CliResult<Row> {
        let value: Value = client.get(&Url::container(id, "/stats").with("stream", "0")).await?;
        Ok(row(id, Some(&Sample::read(&value)), args.no_trunc))
    };
    let rows = futures_util::future::try_join_all(wanted.iter().map(ask)).await?;
    print(columns(), &rows, style(client, args))
}

fn columns() -> Columns<'static> {
    Columns { shown: &SHOWN, hidden: &[("ID", "CONTAINER ID")] }
}

fn style<'a>(client: &'a Client, args: &'a StatsArgs) -> Style<'a> {
    let format = Preferences::format(args.format.as_deref(), &client.preferences().stats_format, false);
    Style { format, quiet: None }
}

fn draw(client: &Client, args: &StatsArgs, rows: &[Row]) -> CliResult<()> {
    if std::io::stdout().is_terminal() {
        // Home, and clear to the end. Source: ECMA-48, CUP and ED.
        let mut out = std::io::stdout().lock();
        out.write_all(b"\x1b[H\x1b[J").map_err(CliError::local("cannot write to standard output"))?;
    }
    print(columns(), rows, style(client, args))
}

fn row(id: &str, sample: Option<&Sample>, full: bool) -> Row {
    let mut row = Row::default();
    let shown = if full { id.to_owned() } else { short_id(id) };
    row.set("Container", shown).set("ID", id);
    let unknown = || "--".to_owned();
    let with = |tell: fn(&Sample) -> String| sample.map_or_else(unknown, tell);
    row.set("Name", with(|sample| sample.name.clone()))
        .set("CPUPerc", with(Sample::cpu_percent))
        .set("MemUsage", with(Sample::memory))
        .set("MemPerc", with(Sample::memory_percent))
        .set("NetIO", with(Sample::network))
        .set("BlockIO", with(Sample::disk))
        .set("PIDs", with(|sample| sample.pids.to_string()));
    row
}
