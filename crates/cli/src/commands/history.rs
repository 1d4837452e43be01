//! `history`.

use serde_json::Value;

use super::{ellipsis, print, short_id, text};
use crate::args::image::HistoryArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::listing::{Column, Columns, Row, Style};
use crate::output::quantity::decimal_size;
use crate::output::time;

/// Characters of a command that are shown.
const COMMAND_WIDTH: usize = 45;

const SHOWN: [Column; 5] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// `history`.
pub(super) async fn history(client: &Client, args: &HistoryArgs) -> CliResult<()> {
    let steps: Vec<Value> = client.get(&Url::image(&args.image, "/history")).await?;
    let rows: Vec<Row> = steps.iter().map(|step| row(step, args)).collect();
    let style = Style { format: args.format.as_deref(), quiet: args.quiet.then_some("ID") };
    print(Columns { shown: &SHOWN, hidden: &[("CreatedAt", "CREATED AT")] }, &rows, style)
}

fn row(step: &Value, args: &HistoryArgs) -> Row {
    let full = args.no_trunc;
    let mut row = Row::default();
    let (id, by) = (text(step, "Id"), text(step, "CreatedBy").replace('\t', " "));
    let created = step["Created"].as_i64().unwrap_or_default();
    row.set("ID", if full || id.starts_with('<') { id.to_owned() } else { short_id(id) })
        .set("CreatedSince", if args.human { time::ago(created) } else { time::utc(created) })
        .set("CreatedAt", time::utc(created))
        .set("CreatedBy", if full { by } else { ellipsis(&by, COMMAND_WIDTH) })
        .set(
            "Size",
            if args.human { decimal_size(step["Size"].as_f64().unwrap_or_default()) } else { step["Size"].to_string() },
        )
        .set("Comment", text(step, "Comment"));
    row
}
