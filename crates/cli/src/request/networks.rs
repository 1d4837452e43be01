//! The networks of a new container, and of one that is connected.

use std::collections::HashMap;

use bollard::models::{EndpointIpamConfig, EndpointSettings, NetworkingConfig};

use crate::args::network::{AddressArgs, JoinArgs};
use crate::error::{CliError, CliResult};
use crate::parse::{environment, fields::fields};

/// What a new container is sent with: its network mode, and what is wanted of each network. Source: docker/cli
/// `parseNetworkOpts`.
///
/// # Errors
/// [`CliError::Usage`] for a word of `--network` that cannot be, and for flags that are for one network when there are several.
pub fn join(args: &JoinArgs) -> CliResult<(String, Option<NetworkingConfig>)> {
    let mut wanted = args.network.iter().map(|text| one(text)).collect::<CliResult<Vec<_>>>()?;
    if wanted.is_empty() {
        wanted.push(("default".to_owned(), EndpointSettings::default()));
    }
    let flags = endpoint(&args.addresses, &args.network_alias);
    let flags = EndpointSettings { mac_address: args.mac_address.clone(), ..flags };
    if flags != EndpointSettings::default() {
        let (_, first) = &mut wanted[0];
        if *first != EndpointSettings::default() {
            let text = "conflicting options: a network's options are given both in --network and as flags of their own";
            return Err(CliError::Usage(text.to_owned()));
        }
        *first = flags;
    }
    let mode = wanted[0].0.clone();
    let told = |(name, settings): &(String, EndpointSettings)| {
        *settings != EndpointSettings::default() || !(is_mode(name) || wanted.len() == 1)
    };
    let endpoints: HashMap<String, EndpointSettings> = wanted.iter().filter(|one| told(one)).cloned().collect();
    Ok((mode, (!endpoints.is_empty()).then_some(NetworkingConfig { endpoints_config: Some(endpoints) })))
}

/// True for what is no network but a way to do without one of its own.
fn is_mode(name: &str) -> bool {
    matches!(name, "default" | "none" | "host") || name.starts_with("container:")
}

/// Reads `NETWORK` or `name=NETWORK,alias=NAME,ip=ADDRESS,...`. Source: docker/cli `opts/network.go`.
fn one(text: &str) -> CliResult<(String, EndpointSettings)> {
    let invalid = |why: &str| CliError::Usage(format!("invalid argument {text:?} for --network: {why}"));
    if !text.contains('=') {
        return Ok((text.to_owned(), EndpointSettings::default()));
    }
    let (mut name, mut addresses, mut aliases) = (None, AddressArgs::default(), Vec::new());
    let (mut options, mut mac_address, mut gw_priority) = (Vec::new(), None, None);
    for field in fields(text).map_err(|why| invalid(&why))? {
        let (key, value) = field.split_once('=').ok_or_else(|| invalid("a field has the form KEY=VALUE"))?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => name = Some(value.to_owned()),
            "alias" => aliases.push(value.to_owned()),
            "ip" => addresses.ip = Some(value.parse().map_err(|_| invalid("ip is no IPv4 address"))?),
            "ip6" => addresses.ip6 = Some(value.parse().map_err(|_| invalid("ip6 is no IPv6 address"))?),
            "link-local-ip" => {
                addresses.link_local_ip.push(value.parse().map_err(|_| invalid("link-local-ip is no address"))?);
            }
            "mac-address" => mac_address = Some(value.to_owned()),
            "driver-opt" => options.push(value.to_owned()),
            "gw-priority" => gw_priority = Some(value.parse().map_err(|_| invalid("gw-priority is no number"))?),
            other => return Err(invalid(&format!("invalid field {other}"))),
        }
    }
    let name = name.ok_or_else(|| invalid("network name/id is not specified"))?;
    let driver_opts = driver_options(&options)?;
    Ok((name, EndpointSettings { mac_address, driver_opts, gw_priority, ..endpoint(&addresses, &aliases) }))
}

/// Options of a network's driver for one container.
///
/// # Errors
/// [`CliError::Usage`].
pub fn driver_options(list: &[String]) -> CliResult<Option<HashMap<String, String>>> {
    (!list.is_empty()).then(|| environment::pairs(list, "driver option")).transpose()
}

/// What is wanted of one network.
#[must_use]
pub fn endpoint(addresses: &AddressArgs, aliases: &[String]) -> EndpointSettings {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let local: Vec<String> = addresses.link_local_ip.iter().map(ToString::to_string).collect();
    let ipam = EndpointIpamConfig {
        ipv4_address: addresses.ip.map(|address| address.to_string()),
        ipv6_address: addresses.ip6.map(|address| address.to_string()),
        link_local_ips: some(&local),
    };
    EndpointSettings {
        ipam_config: (ipam != EndpointIpamConfig::default()).then_some(ipam),
        links: some(&addresses.link),
        aliases: some(aliases),
        ..EndpointSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(networks: &[&str]) -> JoinArgs {
        JoinArgs {
            network: networks.iter().map(|name| (*name).to_owned()).collect(),
            network_alias: Vec::new(),
            mac_address: None,
            addresses: AddressArgs::default(),
        }
    }

    #[test]
    fn a_mode_needs_no_endpoint_and_several_networks_each_have_one() {
        assert_eq!(join(&args(&[])).unwrap(), ("default".into(), None));
        assert_eq!(join(&args(&["container:x"])).unwrap(), ("container:x".into(), None));
        let (mode, config) = join(&args(&["a", "name=b,alias=x,ip=10.0.0.7"])).unwrap();
        let endpoints = config.unwrap().endpoints_config.unwrap();
        assert_eq!((mode.as_str(), endpoints.len()), ("a", 2));
        assert_eq!(endpoints["b"].aliases.as_deref(), Some(&["x".to_owned()][..]));
        assert_eq!(endpoints["b"].ipam_config.as_ref().unwrap().ipv4_address.as_deref(), Some("10.0.0.7"));
    }

    #[test]
    fn flags_are_for_the_first_network_and_said_once() {
        let alias = |networks: &[&str]| JoinArgs { network_alias: vec!["x".into()], ..args(networks) };
        let (_, config) = join(&alias(&["a"])).unwrap();
        assert_eq!(config.unwrap().endpoints_config.unwrap()["a"].aliases.as_deref(), Some(&["x".to_owned()][..]));
        assert!(join(&alias(&["name=a,ip=10.0.0.1"])).unwrap_err().to_string().contains("conflicting"));
        for wrong in ["alias=x", "name=a,ip=y", "name=a,nope=1", "name=a,x"] {
            assert!(join(&args(&[wrong])).is_err(), "{wrong}");
        }
    }
}
