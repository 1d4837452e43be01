//! What several commands ask about a container.

use hyper::Method;
use serde_json::Value;

use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::lines::JsonLines;
use crate::client::url::Url;
use crate::error::{CliError, CliResult, REFUSED};
use crate::output::progress;

/// A wait that was begun: the engine answers when the container has stopped.
pub(super) struct Waiting(JsonLines);

impl Waiting {
    /// Begins to wait. When: before the container is started, so that its end is not missed; the engine has taken note when
    /// this returns.
    pub(super) async fn begin(client: &Client, id: &str, condition: &str) -> CliResult<Self> {
        let url = Url::container(id, "/wait").with("condition", condition);
        Ok(Self(client.lines(Method::POST, &url, RequestBody::empty()).await?))
    }

    /// Waits; gives the container's exit code.
    pub(super) async fn code(mut self) -> CliResult<u8> {
        let answer = self.0.next().await?.ok_or_else(|| CliError::Answer("it has no exit code".into()))?;
        if let Some(message) = answer["Error"]["Message"].as_str().filter(|message| !message.is_empty()) {
            return Err(CliError::Answer(message.to_owned()).with_code(REFUSED));
        }
        exit_code(&answer["StatusCode"])
    }
}

/// An exit code as this process can give it on.
pub(super) fn exit_code(value: &Value) -> CliResult<u8> {
    let code = value.as_i64().ok_or_else(|| CliError::Answer("it has no exit code".into()))?;
    // A process's exit code has eight bits.
    u8::try_from(code & 0xff).map_err(|error| CliError::Answer(error.to_string()))
}

/// Everything about a container.
pub(super) async fn inspect(client: &Client, name: &str) -> CliResult<Value> {
    Ok(client.get(&Url::container(name, "/json")).await?)
}

/// Starts a container; says why it takes long when a template is made for it.
pub(super) async fn start(client: &Client, id: &str) -> CliResult<()> {
    let url = Url::container(id, "/start");
    progress::patiently(client.command(&url), slow_start(client, id)).await.map_err(CliError::from)
}

/// Why a start takes more than half a second.
async fn slow_start(client: &Client, id: &str) -> String {
    let starting = || "starting".to_owned();
    let Ok(container) = inspect(client, id).await else { return starting() };
    if container["HostConfig"]["Isolation"] != "hyperv" {
        return starting();
    }
    match client.get::<Vec<Value>>(&Url::new("/bulkhead/templates")).await {
        Ok(templates) if !templates.iter().any(|template| template["current"] == true) => {
            "booting and freezing the template for utility VMs (once on this host)".into()
        }
        _ => "starting a utility VM".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_have_eight_bits() {
        assert_eq!(exit_code(&300.into()).unwrap(), 44);
        assert_eq!(exit_code(&137.into()).unwrap(), 137);
        assert!(exit_code(&Value::Null).is_err());
    }
}
