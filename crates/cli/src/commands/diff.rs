//! `diff`.

use serde::Deserialize;

use super::say;
use crate::args::files::DiffArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    path: String,
    kind: u8,
}

/// `diff`.
pub(super) async fn diff(client: &Client, args: &DiffArgs) -> CliResult<()> {
    let changes: Option<Vec<Change>> = client.get(&Url::container(&args.container, "/changes")).await?;
    for change in changes.into_iter().flatten() {
        let letter = match change.kind {
            1 => 'A',
            2 => 'D',
            _ => 'C',
        };
        say(&format!("{letter} {}", change.path))?;
    }
    Ok(())
}
