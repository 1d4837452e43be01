//! Networks as Docker's clients expect to see them.

use serde_json::{Map, Value, json};

use crate::network::Member;
use crate::network::record::{Network, Subnet};

/// A network. `members` are its containers by id.
pub(super) fn network<'a>(network: &Network, members: impl Iterator<Item = (&'a String, &'a Member)>) -> Value {
    let configs: Vec<Value> = network.subnets.iter().map(subnet).collect();
    let containers: Map<String, Value> = members.map(|(id, member)| (id.clone(), container(member))).collect();
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": network.created.to_rfc3339_nano(),
        "Scope": "local",
        "Driver": network.driver.as_str(),
        "EnableIPv4": true,
        "EnableIPv6": network.ipv6,
        "IPAM": { "Driver": "default", "Options": network.ipam_options, "Config": configs },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": network.options,
        "Labels": network.labels,
    })
}

fn subnet(subnet: &Subnet) -> Value {
    let mut shown = json!({ "Subnet": subnet.subnet.to_string(), "Gateway": subnet.gateway.to_string() });
    if let Some(range) = subnet.range {
        shown["IPRange"] = json!(range.to_string());
    }
    if !subnet.reserved.is_empty() {
        shown["AuxiliaryAddresses"] = json!(subnet.reserved);
    }
    shown
}

fn container(member: &Member) -> Value {
    let endpoint = &member.endpoint;
    json!({
        "Name": member.name,
        "EndpointID": endpoint.id,
        "MacAddress": endpoint.mac,
        "IPv4Address": endpoint.ipv4.map(|net| net.to_string()).unwrap_or_default(),
        "IPv6Address": endpoint.ipv6.map(|net| net.to_string()).unwrap_or_default(),
    })
}
