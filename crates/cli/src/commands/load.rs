//! `load`.

use hyper::Method;
use indicatif::ProgressBar;
use serde_json::Value;

use super::say;
use super::upload::{self, Upload};
use crate::args::image::LoadArgs;
use crate::client::Client;
use crate::client::lines::JsonLines;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::progress;

/// `load`.
pub(super) async fn load(client: &Client, args: &LoadArgs) -> CliResult<()> {
    let Upload { body, bar } = upload::open(args.input.as_deref()).await?;
    let url = Url::new("/images/load").with_flag("quiet", args.quiet);
    if args.quiet {
        let mut lines = client.lines(Method::POST, &url, body).await?;
        return told(&mut lines, &bar).await;
    }
    upload::with_bar(&bar, "sending the archive", async {
        let mut lines = client.lines(Method::POST, &url, body).await?;
        told(&mut lines, &bar).await
    })
    .await
}

/// Prints what was loaded; while it goes on, the bar says which layer is converted.
async fn told(lines: &mut JsonLines, bar: &ProgressBar) -> CliResult<()> {
    let mut converting: Option<ProgressBar> = None;
    while let Some(line) = lines.next().await? {
        if let Some(message) = line["errorDetail"]["message"].as_str() {
            return Err(CliError::Answer(message.to_owned()));
        }
        if let Some(text) = line["stream"].as_str() {
            bar.suspend(|| say(text.trim_end()))?;
        } else if !bar.is_hidden() && line["id"] != "archive" {
            follow(&line, bar, &mut converting);
        }
    }
    if let Some(bar) = converting {
        bar.finish_and_clear();
    }
    Ok(())
}

/// Shows how far a layer is.
fn follow(line: &Value, sending: &ProgressBar, converting: &mut Option<ProgressBar>) {
    let detail = &line["progressDetail"];
    let (Some(current), Some(total)) = (detail["current"].as_u64(), detail["total"].as_u64()) else { return };
    let bar = converting.get_or_insert_with(|| {
        sending.finish_and_clear();
        let bar = progress::bytes_bar(Some(total));
        progress::show(&bar);
        bar
    });
    bar.set_length(total);
    bar.set_position(current);
    bar.set_message(format!("converting layer {}", line["id"].as_str().unwrap_or_default()));
}
