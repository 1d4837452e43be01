//! `inspect`.

use serde_json::Value;

use super::say;
use crate::args::process::InspectArgs;
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::pretty;
use crate::output::template::Template;

/// A kind of thing that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

impl Kind {
    /// In the order in which a name is looked up, as docker's.
    const ALL: [Self; 4] = [Self::Container, Self::Image, Self::Network, Self::Volume];

    fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
        }
    }

    fn url(self, name: &str, size: bool) -> Url {
        match self {
            Self::Container => Url::container(name, "/json").with_flag("size", size),
            Self::Image => Url::image(name, "/json"),
            Self::Network => Url::named("/networks/", name, ""),
            Self::Volume => Url::named("/volumes/", name, ""),
        }
    }
}

/// `inspect`: whatever has the name.
pub(super) async fn inspect(client: &Client, args: &InspectArgs) -> CliResult<()> {
    let wanted = |kind: &Kind| args.kind.as_deref().is_none_or(|wanted| wanted == kind.word());
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(wanted).collect();
    inspect_all(client, &kinds, &args.names, args.format.as_deref(), args.size).await
}

/// Shows everything about several things. What was found is printed even if something was not.
pub(super) async fn inspect_all(
    client: &Client,
    kinds: &[Kind],
    names: &[String],
    format: Option<&str>,
    size: bool,
) -> CliResult<()> {
    let template = match format {
        None | Some("json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let mut found = Vec::new();
    let mut failed = None;
    for name in names {
        match describe(client, kinds, name, size).await {
            Ok(value) => found.push(value),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    match (&template, format.is_some()) {
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

async fn describe(client: &Client, kinds: &[Kind], name: &str, size: bool) -> CliResult<Value> {
    for kind in kinds {
        match client.get(&kind.url(name, size)).await.map_err(CliError::from) {
            Err(error) if error.is_absent() && kinds.len() > 1 => {}
            outcome => return outcome,
        }
    }
    Err(CliError::Usage(format!("No such object: {name}")).with_code(1))
}
