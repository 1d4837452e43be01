//! `inspect`.

use serde_json::Value;

use super::say;
use crate::args::process::InspectArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::pretty;
use crate::output::template::Template;

/// `inspect`: containers first, then images.
pub(super) async fn inspect(client: &Client, args: &InspectArgs) -> CliResult<()> {
    let template = match args.format.as_deref() {
        None | Some("json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let mut found = Vec::new();
    let mut failed = None;
    for name in &args.names {
        match describe(client, args, name).await {
            Ok(value) => found.push(value),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    match (&template, args.format.is_some()) {
        (Some(template), _) => {
            for value in &found {
                say(&template.apply(value)?)?;
            }
        }
        (None, true) => say(&Value::Array(found).to_string())?,
        (None, false) => say(&pretty(&found).map_err(|error| CliError::Answer(error.to_string()))?)?,
    }
    failed.map_or(Ok(()), Err)
}

async fn describe(client: &Client, args: &InspectArgs, name: &str) -> CliResult<Value> {
    let wanted = |kind: &str| args.kind.as_deref().is_none_or(|wanted| wanted == kind);
    if wanted("container") {
        let url = Url::container(name, "/json").with_flag("size", args.size);
        match client.get(&url).await.map_err(CliError::from) {
            Err(error) if error.is_not_found() && wanted("image") => {}
            outcome => return outcome,
        }
    }
    match client.get(&Url::image(name, "/json")).await.map_err(CliError::from) {
        Err(error) if error.is_not_found() && wanted("container") => {
            Err(CliError::Usage(format!("No such object: {name}")).with_code(1))
        }
        outcome => outcome,
    }
}
