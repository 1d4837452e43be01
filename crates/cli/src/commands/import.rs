//! `import`.

use std::path::Path;

use hyper::Method;

use super::say;
use super::upload::{self, Upload};
use crate::args::image::ImportArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};

/// `import`.
pub(super) async fn import(client: &Client, args: &ImportArgs) -> CliResult<()> {
    let file = (args.file != "-").then(|| Path::new(&args.file));
    let Upload { body, bar } = upload::open(file).await?;
    let mut url = Url::new("/images/create")
        .with("fromSrc", "-")
        .with_some("repo", args.reference.as_deref())
        .with_some("message", args.message.as_deref())
        .with_some("platform", args.platform.as_deref());
    for change in &args.change {
        url = url.with("changes", change);
    }
    let status = upload::with_bar(&bar, "importing", async {
        let mut lines = client.lines(Method::POST, &url, body).await?;
        let mut status = String::new();
        while let Some(line) = lines.next().await? {
            if let Some(message) = line["errorDetail"]["message"].as_str() {
                return Err(CliError::Answer(message.to_owned()));
            }
            status = line["status"].as_str().unwrap_or_default().to_owned();
        }
        Ok(status)
    })
    .await?;
    say(&status)
}
