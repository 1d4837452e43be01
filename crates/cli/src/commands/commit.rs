//! `commit`.

use serde_json::Value;

use super::{say, text};
use crate::args::files::CommitArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::CliResult;

/// `commit`.
pub(super) async fn commit(client: &Client, args: &CommitArgs) -> CliResult<()> {
    let mut url = Url::new("/commit")
        .with("container", &args.container)
        .with_some("author", args.author.as_deref())
        .with_some("comment", args.message.as_deref())
        .with_some("repo", args.reference.as_deref())
        .with("pause", if args.pause { "1" } else { "0" });
    for change in &args.change {
        url = url.with("changes", change);
    }
    let answer: Value = client.post(&url, &Value::Null).await?;
    say(text(&answer, "Id"))
}
