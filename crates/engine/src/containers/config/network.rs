//! Which networks a new container is to be on.

use std::collections::BTreeMap;

use bollard::models::{EndpointSettings, HostConfig, NetworkingConfig};
use proto::Isolation;
use proto::network::NETWORK_SLOTS;
use serde::Deserialize;
use serde_json::Value;

use super::Requested;
use crate::error::{ApiError, ApiResult};
use crate::network;
use crate::network::endpoint::{Endpoint, Endpoints};

/// Networks that one container may be on.
const MOST: usize = 64;

/// Reads a container's networks, and what it publishes. The answer has what the client should know, too.
///
/// # Errors
/// 400, in dockerd's words, for what cannot be combined; 501 for what this version does not do.
pub(super) fn decide(
    requested: &Requested,
    host: &HostConfig,
    networking: Value,
) -> ApiResult<(Endpoints, Vec<String>)> {
    let networking = match networking {
        Value::Null => NetworkingConfig::default(),
        value => {
            NetworkingConfig::deserialize(value).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?
        }
    };
    let given: BTreeMap<String, EndpointSettings> =
        networking.endpoints_config.unwrap_or_default().into_iter().collect();
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let wanted = network::wanted_ports(host, &[])?;
    let publishes = !wanted.is_empty() || host.publish_all_ports == Some(true);
    let mut warnings = Vec::new();
    if mode.starts_with("container:") {
        check_shared(requested, host, publishes)?;
        if requested.isolation == Isolation::Hyperv {
            return Err(ApiError::not_implemented(format!(
                "network mode {mode:?}: a hyperv container is in a utility VM of its own and cannot share another's network"
            )));
        }
        return Ok((Endpoints::default(), warnings));
    }
    if mode == "host" && publishes {
        warnings.push("Published ports are discarded when using host network mode".into());
    }
    let primary = if matches!(mode, "" | "default") { "bridge" } else { mode };
    let mut all: BTreeMap<String, Endpoint> =
        given.into_iter().map(|(name, asked)| (named(&name), Endpoint::asked(asked))).collect();
    all.entry(primary.to_owned()).or_default();
    all.values().try_for_each(|endpoint| network::rates(requested.isolation, &endpoint.asked).map(drop))?;
    let most = most_networks(requested.isolation);
    if all.len() > most {
        return Err(ApiError::invalid(format!(
            "a {} container may be on {most} networks at most",
            requested.isolation
        )));
    }
    if matches!(primary, "host" | "none") && all.len() > 1 {
        return Err(ApiError::invalid(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ));
    }
    let mac = requested.config["MacAddress"].as_str().filter(|mac| !mac.is_empty());
    if let (Some(mac), Some(endpoint)) = (mac, all.get_mut(primary)) {
        endpoint.asked.mac_address.get_or_insert_with(|| mac.to_owned());
    }
    Ok((Endpoints { all, ..Endpoints::default() }, warnings))
}

fn named(name: &str) -> String {
    if name == "default" { "bridge".to_owned() } else { name.to_owned() }
}

/// Networks that one container may be on. A utility VM has a slot for each.
fn most_networks(isolation: Isolation) -> usize {
    match isolation {
        Isolation::Process => MOST,
        Isolation::Hyperv => usize::try_from(NETWORK_SLOTS).unwrap_or(MOST),
    }
}

/// Source: moby `daemon/container.go` and `runconfig/errors.go`.
fn check_shared(requested: &Requested, host: &HostConfig, publishes: bool) -> ApiResult<()> {
    let has = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let text = |name: &str| requested.config[name].as_str().is_some_and(|text| !text.is_empty());
    let exposes = requested.config["ExposedPorts"].as_object().is_some_and(|ports| !ports.is_empty());
    for (conflict, what) in [
        (text("Hostname"), "hostname and the network mode"),
        (has(&host.links), "container type network can't be used with links. This would result in undefined behavior"),
        (has(&host.dns), "dns and the network mode"),
        (has(&host.extra_hosts), "custom host-to-IP mapping and the network mode"),
        (text("MacAddress"), "mac-address and the network mode"),
        (publishes, "port publishing and the container type network mode"),
        (exposes, "port exposing and the container type network mode"),
    ] {
        if conflict {
            return Err(ApiError::invalid(format!("conflicting options: {what}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::defaults::ContainerDefaults;

    #[allow(clippy::needless_pass_by_value, reason = "tests read better with json!() as the argument")]
    fn read(host: Value, networking: Value) -> ApiResult<Requested> {
        let body = json!({ "Image": "busybox", "HostConfig": host, "NetworkingConfig": networking });
        Requested::read(body, Isolation::Process, &ContainerDefaults::default())
    }

    #[test]
    fn networks_are_decided() {
        let names = |requested: Requested| requested.endpoints.all.into_keys().collect::<Vec<_>>();
        assert_eq!(names(read(json!({}), Value::Null).unwrap()), ["bridge"]);
        let default = read(json!({"NetworkMode": "default"}), json!({"EndpointsConfig": {"default": {}}})).unwrap();
        assert_eq!(names(default), ["bridge"]);
        let two = json!({"EndpointsConfig": {"web": {"Aliases": ["x"]}, "db": {}}});
        let two = read(json!({"NetworkMode": "web"}), two).unwrap();
        assert_eq!(two.endpoints.all["web"].asked.aliases, Some(vec!["x".to_owned()]));
        assert_eq!(names(two), ["db", "web"]);
        let host = read(json!({"NetworkMode": "host", "PublishAllPorts": true}), Value::Null).unwrap();
        assert_eq!(host.warnings.len(), 1);
    }

    #[test]
    fn what_cannot_be_combined_is_refused_in_dockers_words() {
        let none = read(json!({"NetworkMode": "none"}), json!({"EndpointsConfig": {"web": {}}})).unwrap_err();
        assert!(none.message.starts_with("container cannot be connected to multiple networks"));
        let ports = json!({"NetworkMode": "container:x", "PortBindings": {"80/tcp": [{"HostPort": "8081"}]}});
        let error = read(ports, Value::Null).unwrap_err();
        assert_eq!(error.message, "conflicting options: port publishing and the container type network mode");
        let bad = read(json!({"PortBindings": {"80/tcp": [{"HostPort": "xx"}]}}), Value::Null).unwrap_err();
        assert_eq!((bad.http_status().as_u16(), bad.message.as_str()), (400, "invalid port specification: \"xx\""));
    }

    #[test]
    fn a_utility_vm_has_a_slot_for_each_network_and_shares_none() {
        let hyperv = |mode: &str, networks: &[&str]| {
            let endpoints: serde_json::Map<String, Value> =
                networks.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
            read(json!({"Isolation": "hyperv", "NetworkMode": mode}), json!({ "EndpointsConfig": endpoints }))
        };
        assert!(hyperv("a", &["a", "b", "c", "d"]).unwrap().warnings.is_empty());
        assert_eq!(hyperv("a", &["a", "b", "c", "d", "e"]).unwrap_err().http_status(), 400);
        assert_eq!(hyperv("container:x", &[]).unwrap_err().http_status(), 501);
    }
}
