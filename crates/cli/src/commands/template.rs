//! `template`: the frozen utility VMs.

use hyper::Method;
use serde_json::Value;

use super::{for_each, print, say, short_id, text};
use crate::args::system::TemplateCommand;
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::color::Tone;
use crate::output::listing::{Column, Columns, Row, Style};
use crate::output::progress;
use crate::output::quantity::{binary_size, decimal_size};
use crate::output::time;

const SHOWN: [Column; 9] = [
    ("ID", "TEMPLATE ID"),
    ("Created", "CREATED"),
    ("Accelerator", "ACCELERATOR"),
    ("Kernel", "KERNEL"),
    ("Memory", "MEMORY"),
    ("CPUs", "CPUS"),
    ("Disk", "DISK"),
    ("Boot", "BOOT"),
    ("Current", "CURRENT"),
];

/// `template ls|create|rm|prune`.
pub(super) async fn template(client: &Client, command: &TemplateCommand) -> CliResult<()> {
    match command {
        TemplateCommand::Ls { quiet, format } => {
            let templates: Vec<Value> = client.get(&Url::new("/bulkhead/templates")).await?;
            let rows: Vec<Row> = templates.iter().map(row).collect();
            let style = Style { format: format.as_deref(), quiet: quiet.then_some("ID") };
            print(Columns { shown: &SHOWN, hidden: &[] }, &rows, style)
        }
        TemplateCommand::Create => {
            let url = Url::new("/bulkhead/templates");
            let making = client.post::<Value>(&url, &Value::Null);
            let template =
                progress::patiently(making, async { "booting and freezing a utility VM".to_owned() }).await?;
            say(text(&template, "id"))
        }
        TemplateCommand::Rm { ids } => {
            for_each(ids, async |id| {
                client.delete(&Url::named("/bulkhead/templates/", id, "")).await?;
                say(id)
            })
            .await
        }
        TemplateCommand::Prune => {
            let url = Url::new("/bulkhead/templates/prune");
            let mut answer = client.lines(Method::POST, &url, RequestBody::empty()).await?;
            let pruned = answer.next().await?.unwrap_or_default();
            for id in pruned["TemplatesDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                say(&format!("Deleted: {id}"))?;
            }
            let freed = decimal_size(pruned["SpaceReclaimed"].as_f64().unwrap_or_default());
            say(&format!("Total reclaimed space: {freed}"))
        }
    }
}

fn row(template: &Value) -> Row {
    let number = |name: &str| template[name].as_f64().unwrap_or_default();
    let created = template["created_at_ns"].as_i64().unwrap_or_default() / 1_000_000_000;
    let current = template["current"] == true;
    let mut row = Row::default();
    row.set("ID", short_id(text(template, "id")))
        .set("Created", time::ago(created))
        .set("Accelerator", text(template, "accelerator"))
        .set("Kernel", text(template, "kernel"))
        .set("Memory", binary_size(number("memory_bytes")))
        .set("CPUs", template["vcpus"].clone())
        .set("Disk", decimal_size(number("disk_bytes")))
        .set("Boot", format!("{:.1} s", number("boot_ms") / 1000.0))
        .set("Current", if current { "yes" } else { "no" })
        .tone("Current", if current { Tone::Good } else { Tone::Dim });
    row
}
