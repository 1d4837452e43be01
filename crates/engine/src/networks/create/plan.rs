//! The record of a network that is asked for.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use bollard::models::{IpamConfig, NetworkCreateRequest};
use ipnet::IpNet;

use crate::error::{ApiError, ApiResult};
use crate::network::record::{BRIDGE_NAME, Driver, Network, Subnet};
use crate::network::{Networks, new_id};

/// Linux: a link's name has 15 bytes at most.
const MAX_LINK_NAME: usize = 15;
/// Bytes: smaller packets IPv4 does not know.
const LEAST_MTU: u32 = 68;
/// Subnets of one network.
const MOST_SUBNETS: usize = 16;

/// Decides everything about a network. What the client leaves open is chosen.
///
/// # Errors
/// 400 for what cannot be.
pub(super) fn network(networks: &Networks, request: &NetworkCreateRequest) -> ApiResult<Network> {
    let mut network = Network::new(new_id()?, &request.name, Driver::Bridge);
    let ipam = request.ipam.clone().unwrap_or_default();
    network.internal = request.internal.unwrap_or_default();
    network.attachable = request.attachable.unwrap_or_default();
    network.ipv6 = request.enable_ipv6.unwrap_or_default();
    network.options = sorted(request.options.as_ref());
    network.labels = sorted(request.labels.as_ref());
    network.ipam_options = ipam.options.as_ref().map(|options| sorted(Some(options)));
    network.bridge = match network.options.get(BRIDGE_NAME) {
        Some(name) => link_name(name)?,
        None => Networks::bridge_name(&network.id),
    };
    let asks_mtu = network.options.contains_key("com.docker.network.driver.mtu");
    if asks_mtu && network.mtu().is_none_or(|mtu| mtu < LEAST_MTU) {
        return Err(ApiError::invalid("invalid value for com.docker.network.driver.mtu"));
    }
    let configs = ipam.config.unwrap_or_default();
    if configs.len() > MOST_SUBNETS {
        return Err(wrong(&format!("more than {MOST_SUBNETS} subnets")));
    }
    for config in configs.iter().filter(|config| config.subnet.as_ref().is_some_and(|text| !text.is_empty())) {
        let subnet = subnet(config)?;
        network.subnets_given = true;
        if network.ipv6 || matches!(subnet.subnet, IpNet::V4(_)) {
            network.subnets.push(subnet);
        }
    }
    let has = |network: &Network, v4: bool| network.subnets.iter().any(|net| matches!(net.subnet, IpNet::V4(_)) == v4);
    if !has(&network, true) {
        network.subnets.insert(0, networks.free_subnet()?);
    }
    if network.ipv6 && !has(&network, false) {
        network.subnets.push(networks.free_subnet6(&network.id));
    }
    Ok(network)
}

fn sorted(map: Option<&HashMap<String, String>>) -> BTreeMap<String, String> {
    map.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn link_name(name: &str) -> ApiResult<String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if !name.is_empty() && name.len() <= MAX_LINK_NAME && name.bytes().all(valid) && !matches!(name, "." | "..") {
        return Ok(name.to_owned());
    }
    Err(ApiError::invalid(format!("invalid bridge name {name:?}: at most {MAX_LINK_NAME} of [a-zA-Z0-9_.-]")))
}

fn wrong(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid network config:\n{text}"))
}

fn subnet(config: &IpamConfig) -> ApiResult<Subnet> {
    let text = config.subnet.as_deref().unwrap_or_default();
    let subnet = block("subnet", text)?;
    if subnet.prefix_len() > subnet.max_prefix_len() - 2 || subnet.prefix_len() == 0 {
        return Err(wrong(&format!(
            "invalid subnet {subnet}: it has no room for a gateway and a container, or is everything"
        )));
    }
    let outside = |what: &str, text: &str| wrong(&format!("invalid {what} {text}: parent subnet is {subnet}"));
    let within = |what: &str, text: &str| -> ApiResult<IpAddr> {
        let address = text.parse().map_err(|_| wrong(&format!("invalid {what} {text}: invalid address")))?;
        if subnet.contains(&address) { Ok(address) } else { Err(outside(what, text)) }
    };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let range = match given(&config.ip_range) {
        Some(text) => Some(block("ip-range", &text)?)
            .filter(|range| subnet.contains(range))
            .map_or_else(|| Err(outside("ip-range", &text)), |range| Ok(Some(range)))?,
        None => None,
    };
    let gateway = match given(&config.gateway) {
        Some(text) => within("gateway", text.split('/').next().unwrap_or_default())?,
        None => hostnet::first_address(subnet),
    };
    let mut reserved = BTreeMap::new();
    for (name, address) in config.auxiliary_addresses.iter().flatten() {
        reserved.insert(name.clone(), within("auxiliary address", address)?);
    }
    Ok(Subnet { subnet, range, gateway, reserved })
}

fn block(what: &str, text: &str) -> ApiResult<IpNet> {
    let block: IpNet =
        text.parse().map_err(|_| wrong(&format!("invalid {what} {text}: invalid CIDR block notation")))?;
    Ok(block.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn subnets_are_read() {
        let read = |json: Value| subnet(&serde_json::from_value::<IpamConfig>(json).unwrap());
        let plain = read(json!({"Subnet": "10.99.0.7/24"})).unwrap();
        assert_eq!((plain.subnet.to_string(), plain.gateway.to_string()), ("10.99.0.0/24".into(), "10.99.0.1".into()));
        let whole = json!({"Subnet": "10.99.0.0/24", "IPRange": "10.99.0.128/25", "Gateway": "10.99.0.254",
            "AuxiliaryAddresses": {"host": "10.99.0.5"}});
        let whole = read(whole).unwrap();
        assert_eq!((whole.gateway.to_string(), whole.reserved.len()), ("10.99.0.254".into(), 1));
        for (json, text) in [
            (json!({"Subnet": "bad"}), "invalid subnet bad"),
            (json!({"Subnet": "10.0.0.0/31"}), "no room"),
            (
                json!({"Subnet": "10.99.0.0/24", "Gateway": "10.98.0.1"}),
                "invalid gateway 10.98.0.1: parent subnet is 10.99.0.0/24",
            ),
            (json!({"Subnet": "10.99.0.0/24", "IPRange": "10.0.0.0/8"}), "invalid ip-range"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.message.contains(text), "{}", error.message);
        }
        assert!(link_name("br-much-too-long-name").is_err() && link_name("../x").is_err());
    }
}
