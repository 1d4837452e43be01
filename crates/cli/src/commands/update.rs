//! `update` and `port`: what a container may use, and where it is reached.

use bollard::models::HostConfig;
use serde_json::Value;

use super::{container, for_each, say, warn};
use crate::args::process::{PortArgs, UpdateArgs};
use crate::client::Client;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::parse::{ports, restart};
use crate::request;

/// `update`.
pub(super) async fn update(client: &Client, args: &UpdateArgs) -> CliResult<()> {
    let restart_policy = args.restart.as_deref().map(restart::policy).transpose()?;
    let changes = HostConfig { restart_policy, ..request::limits(&args.limits) };
    if changes == HostConfig::default() {
        let text = "you must provide one or more flags when using this command";
        return Err(CliError::Usage(text.to_owned()).with_code(1));
    }
    for_each(&args.names.names, async |name| {
        let answer: Value = client.post(&Url::container(name, "/update"), &changes).await?;
        for warning in answer["Warnings"].as_array().into_iter().flatten() {
            warn(warning.as_str());
        }
        say(name)
    })
    .await
}

/// `port`.
pub(super) async fn port(client: &Client, args: &PortArgs) -> CliResult<()> {
    let described = container::inspect(client, &args.container).await?;
    let published = &described["NetworkSettings"]["Ports"];
    let Some(wanted) = &args.port else {
        let lines = all(published);
        return if lines.is_empty() { Ok(()) } else { say(&lines.join("\n")) };
    };
    let invalid = || CliError::Usage(format!("invalid port: {wanted:?}")).with_code(1);
    let wanted = ports::exposed(wanted).ok_or_else(invalid)?;
    let bindings = bindings(&published[&wanted]);
    if bindings.is_empty() {
        let text = format!("no public port '{wanted}' published for {}", args.container);
        return Err(CliError::Usage(text).with_code(1));
    }
    say(&bindings.join("\n"))
}

/// A line for each port of the host, in the order of the container's ports.
fn all(published: &Value) -> Vec<String> {
    let mut ports: Vec<(&String, &Value)> = published.as_object().into_iter().flatten().collect();
    let number = |port: &str| port.split('/').next().and_then(|number| number.parse::<u16>().ok());
    ports.sort_by_key(|(port, _)| (number(port), port.to_owned()));
    ports.iter().flat_map(|(port, to)| bindings(to).into_iter().map(move |to| format!("{port} -> {to}"))).collect()
}

fn bindings(list: &Value) -> Vec<String> {
    let one = |binding: &Value| {
        let (address, port) = (super::text(binding, "HostIp"), super::text(binding, "HostPort"));
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    list.as_array().into_iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_told_as_docker_tells_them() {
        let published = json!({
            "443/tcp": null,
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
            "9/udp": [{"HostIp": "127.0.0.1", "HostPort": "9"}],
        });
        assert_eq!(all(&published), ["9/udp -> 127.0.0.1:9", "80/tcp -> 0.0.0.0:8080", "80/tcp -> [::]:8080"]);
        assert_eq!(all(&Value::Null), Vec::<String>::new());
    }
}
