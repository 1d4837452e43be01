//! `top`.

use serde_json::Value;

use super::say;
use crate::args::process::TopArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::color;
use crate::output::table::{self, Field};

/// `top`.
pub(super) async fn top(client: &Client, args: &TopArgs) -> CliResult<()> {
    let options = args.options.join(" ");
    let url = Url::container(&args.container, "/top");
    let url = if options.is_empty() { url } else { url.with("ps_args", &options) };
    let processes: Value = client.get(&url).await?;
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    };
    let titles = texts(&processes["Titles"]);
    let heading: Vec<&str> = titles.iter().map(String::as_str).collect();
    let rows: Vec<Vec<Field>> = processes["Processes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|process| texts(process).iter().map(|text| Field::plain(text)).collect())
        .collect();
    say(&table::layout(&heading, &rows, color::on_stdout()))
}
