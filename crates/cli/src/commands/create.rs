//! `create`, and what `run` does first.

use bollard::models::ContainerCreateBody;
use serde_json::Value;

use super::id_file::IdFile;
use super::transfer::{self, Pull, Say};
use super::{say, warn};
use crate::args::container::CreateArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::request::{Attached, create_body};

/// `create`.
pub(super) async fn create(client: &Client, args: &CreateArgs) -> CliResult<()> {
    let attached = Attached::choose(&args.attach, args.interactive, false)?;
    say(&make(client, args, &body(client, args, attached)?).await?)
}

/// The body of the request, with the proxies that the user's configuration has for containers.
///
/// # Errors
/// As [`create_body`].
pub(super) fn body(client: &Client, args: &CreateArgs, attached: Attached) -> CliResult<ContainerCreateBody> {
    let mut body = create_body(args, attached, args.rm)?;
    let set = |name: &str| args.env.iter().any(|entry| entry.split('=').next() == Some(name));
    let proxies = client.preferences().proxy_variables(&client.address().to_string(), set);
    if !proxies.is_empty() {
        let variables = proxies.into_iter().map(|(name, value)| format!("{name}={value}"));
        body.env.get_or_insert_default().extend(variables);
    }
    Ok(body)
}

/// Makes a container, pulling its image if need be; gives its id. The engine's warnings are printed.
pub(super) async fn make(client: &Client, args: &CreateArgs, body: &ContainerCreateBody) -> CliResult<String> {
    if args.pull == "always" {
        pull(client, args).await?;
    }
    let url = Url::new("/containers/create").with_some("name", args.name.as_deref());
    let url = url.with_some("platform", args.platform.as_deref());
    let id_file = args.cidfile.as_deref().map(IdFile::make).transpose()?;
    let made: Value = match client.post(&url, body).await.map_err(CliError::from) {
        Err(error) if error.is_not_found() && args.pull == "missing" && error.to_string().contains("No such image") => {
            pull(client, args).await?;
            client.post(&url, body).await?
        }
        outcome => outcome?,
    };
    let id = made["Id"].as_str().ok_or_else(|| CliError::Answer("it has no container id".into()))?;
    for warning in made["Warnings"].as_array().into_iter().flatten() {
        warn(warning.as_str());
    }
    if let Some(file) = id_file {
        file.write(id)?;
    }
    Ok(id.to_owned())
}

/// Asks the engine for an image that it has not.
async fn pull(client: &Client, args: &CreateArgs) -> CliResult<()> {
    let image = args.image();
    if args.pull == "missing" && !args.quiet {
        eprintln!("Unable to find image '{image}' locally");
    }
    let platform = args.platform.as_deref();
    transfer::pull(
        client,
        &Pull { image, all_tags: false, platform, say: if args.quiet { Say::Nothing } else { Say::ToError } },
    )
    .await
}
