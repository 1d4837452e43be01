//! A container's networks as Docker's clients expect to see them.

use bollard::models::ContainerConfig;
use serde_json::{Map, Value, json};

use crate::container::record::Record;
use crate::network::Networks;
use crate::network::endpoint::{Endpoint, Endpoints, PublishedPort};

/// `NetworkSettings`.
#[must_use]
pub fn settings(record: &Record, engine: &Networks) -> Value {
    let short = short_id(record);
    let bridge = record.network.all.get("bridge").cloned().unwrap_or_default().show(&short);
    let path = engine.namespace_path(record.id.as_str());
    let key = if record.network.sandbox { path.display().to_string() } else { String::new() };
    let id = if record.network.sandbox { record.id.to_string() } else { String::new() };
    json!({
        "Bridge": "", "SandboxID": id, "SandboxKey": key, "Ports": port_map(record), "HairpinMode": false,
        "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null, "EndpointID": bridge["EndpointID"], "Gateway": bridge["Gateway"],
        "GlobalIPv6Address": bridge["GlobalIPv6Address"], "GlobalIPv6PrefixLen": bridge["GlobalIPv6PrefixLen"],
        "IPAddress": bridge["IPAddress"], "IPPrefixLen": bridge["IPPrefixLen"], "IPv6Gateway": bridge["IPv6Gateway"],
        "MacAddress": bridge["MacAddress"], "Networks": networks(record),
    })
}

fn short_id(record: &Record) -> String {
    record.id.as_str().get(..12).unwrap_or_default().to_owned()
}

/// Its endpoints by network.
#[must_use]
pub fn networks(record: &Record) -> Value {
    let short = short_id(record);
    let shown = record.network.all.iter().map(|(name, endpoint): (_, &Endpoint)| (name.clone(), endpoint.show(&short)));
    Value::Object(shown.collect())
}

/// Every port that is exposed or published: where it is published, or null. Empty while it does not run.
fn port_map(record: &Record) -> Value {
    let mut ports = Map::new();
    if !record.phase.is_running() {
        return Value::Object(ports);
    }
    for name in record.config["ExposedPorts"].as_object().into_iter().flatten().map(|(name, _)| name) {
        ports.insert(name.clone(), Value::Null);
    }
    for port in &record.network.ports {
        let name = format!("{}/{}", port.container_port, port.protocol.as_str());
        let binding = json!({ "HostIp": port.host.ip().to_string(), "HostPort": port.host.port().to_string() });
        match ports.get_mut(&name) {
            Some(Value::Array(bindings)) => bindings.push(binding),
            _ => drop(ports.insert(name, json!([binding]))),
        }
    }
    Value::Object(ports)
}

/// `docker ps`' ports: those that are published, and those that the image names beyond.
#[must_use]
pub fn ports(config: &ContainerConfig, endpoints: &Endpoints) -> Vec<Value> {
    let published = |port: &PublishedPort| {
        json!({ "IP": port.host.ip().to_string(), "PrivatePort": port.container_port, "PublicPort": port.host.port(),
            "Type": port.protocol.as_str() })
    };
    let mut shown: Vec<Value> = endpoints.ports.iter().map(published).collect();
    let exposed = config.exposed_ports.iter().flatten().filter_map(|text| {
        let (number, kind) = text.split_once('/').unwrap_or((text, "tcp"));
        let number = number.parse::<u16>().ok()?;
        let is_published = |port: &PublishedPort| port.container_port == number && port.protocol.as_str() == kind;
        let hidden = endpoints.ports.iter().any(is_published);
        (!hidden).then(|| json!({ "PrivatePort": number, "Type": kind }))
    });
    shown.extend(exposed);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::container::record::Phase;
    use crate::container::record::tests::record;

    #[test]
    fn ports_are_shown_published_and_exposed() {
        let mut record = record("abc", "n");
        record.config["ExposedPorts"] = json!({"80/tcp": {}, "53/udp": {}});
        record.network.ports = vec![PublishedPort {
            container_port: 80,
            protocol: hostnet::Protocol::Tcp,
            host: "0.0.0.0:8080".parse().unwrap(),
            target: "10.0.0.2:80".parse().unwrap(),
        }];
        assert_eq!(port_map(&record), json!({}));
        record.phase = Phase::Running { pid: 1, started_at: Timestamp(1), paused: false, oom_kills: 0 };
        let map = port_map(&record);
        assert_eq!(map["80/tcp"], json!([{"HostIp": "0.0.0.0", "HostPort": "8080"}]));
        assert_eq!(map["53/udp"], Value::Null);
        let listed = ports(&record.typed_config().unwrap(), &record.network);
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0]["PublicPort"], 8080);
    }
}
