//! Published ports: what a client asks for, and taking them on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use bollard::models::{HostConfig, PortBinding};
use hostnet::Protocol;
use hostnet::proxy::ReservedPort;

use super::endpoint::PublishedPort;
use crate::error::{ApiError, ApiResult};

/// Tries for a port that is free in both families.
const TRIES: usize = 32;
/// Ports that one container may publish.
const MOST: usize = 4096;

/// A port that a client wants published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort {
    /// In the container.
    pub container_port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// On which address of the host's; without one, on all.
    pub address: Option<IpAddr>,
    /// Any one of these; none is any that is free.
    pub candidates: Option<RangeInclusive<u16>>,
}

/// Reads what a container publishes. `exposed` counts with `--publish-all` only.
///
/// # Errors
/// 400, in dockerd's words, for what is no port or no address; 501 for SCTP.
pub fn wanted_ports(host: &HostConfig, exposed: &[String]) -> ApiResult<Vec<WantedPort>> {
    let mut wanted = Vec::new();
    let bindings: BTreeMap<_, _> = host.port_bindings.iter().flatten().collect();
    for (key, bindings) in &bindings {
        let (container_port, protocol) = parse_port(key)?;
        let any = [PortBinding::default()];
        let bindings = bindings.as_deref().unwrap_or_default();
        for binding in if bindings.is_empty() { &any[..] } else { bindings } {
            wanted.push(read_binding(container_port, protocol, binding)?);
        }
    }
    if host.publish_all_ports == Some(true) {
        for port in exposed {
            let (container_port, protocol) = parse_port(port)?;
            let known = |wanted: &WantedPort| (wanted.container_port, wanted.protocol) == (container_port, protocol);
            if !wanted.iter().any(known) {
                wanted.push(WantedPort { container_port, protocol, address: None, candidates: None });
            }
        }
    }
    if wanted.len() > MOST {
        return Err(ApiError::invalid(format!("a container may publish {MOST} ports at most")));
    }
    Ok(wanted)
}

/// `80/tcp`, `53/udp`, `80`.
///
/// # Errors
/// 400 for what is no port.
pub fn parse_port(text: &str) -> ApiResult<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => {
            return Err(ApiError::not_implemented(format!(
                "port {text}: SCTP is not supported by this version of Bulkhead"
            )));
        }
        other => return Err(ApiError::invalid(format!("invalid port specification: invalid proto: {other}"))),
    };
    let number = number.parse().ok().filter(|number| *number != 0);
    number
        .map(|number| (number, protocol))
        .ok_or_else(|| ApiError::invalid(format!("invalid port specification: {text:?}")))
}

fn read_binding(container_port: u16, protocol: Protocol, binding: &PortBinding) -> ApiResult<WantedPort> {
    let text = binding.host_port.as_deref().unwrap_or_default();
    let invalid = || ApiError::invalid(format!("invalid port specification: {text:?}"));
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    let candidates = match text.split_once('-') {
        _ if text.is_empty() => None,
        Some((first, last)) => Some(number(first)?..=number(last)?).filter(|range| !range.is_empty()),
        None => Some(number(text)?).filter(|port| *port != 0).map(|port| port..=port),
    };
    if candidates.is_none() && text.contains('-') {
        return Err(invalid());
    }
    let address = binding.host_ip.as_deref().unwrap_or_default().trim_matches(['[', ']']);
    let address = match address {
        "" => None,
        text => Some(text.parse().map_err(|_| ApiError::invalid(format!("invalid IP address: {text}")))?),
    };
    Ok(WantedPort { container_port, protocol, address, candidates })
}

/// Where a container is reached from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

impl Target {
    /// The address for connections of that family: its own if the container has it, else the other, by the proxy.
    fn of(self, is_v4: bool) -> Option<IpAddr> {
        let (v4, v6) = (self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6));
        if is_v4 { v4.or(v6) } else { v6.or(v4) }
    }
}

/// A port that was taken, with the socket that holds it.
pub(super) struct TakenPort {
    pub(super) port: PublishedPort,
    pub(super) socket: ReservedPort,
}

/// Takes every port, or none. `own` are the ports that containers of this engine have.
///
/// # Errors
/// The text behind dockerd's "driver failed programming external connectivity": which port is taken.
pub(super) fn take(
    wanted: &[WantedPort],
    target: Target,
    default: Option<IpAddr>,
    own: &BTreeSet<(Protocol, SocketAddr)>,
) -> Result<Vec<TakenPort>, String> {
    let mut taken: Vec<TakenPort> = Vec::new();
    for port in wanted {
        let addresses = match port.address.or(default) {
            Some(address) => vec![address],
            None => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        };
        taken.extend(take_one(port, &addresses, target).map_err(|(address, error)| {
            let target = target.of(address.is_ipv4()).map(|ip| SocketAddr::new(ip, port.container_port).to_string());
            let before = taken.iter().map(|taken| (taken.port.protocol, taken.port.host));
            let own = own.iter().copied().chain(before);
            explain(port, address, &error, &target.unwrap_or_default(), own)
        })?);
    }
    Ok(taken)
}

fn explain(
    port: &WantedPort,
    address: SocketAddr,
    error: &io::Error,
    target: &str,
    mut own: impl Iterator<Item = (Protocol, SocketAddr)>,
) -> String {
    let is_ours = |(protocol, taken): (Protocol, SocketAddr)| {
        let meets = taken.ip() == address.ip() || taken.ip().is_unspecified() || address.ip().is_unspecified();
        protocol == port.protocol && taken.port() == address.port() && taken.is_ipv4() == address.is_ipv4() && meets
    };
    match error.kind() {
        io::ErrorKind::AddrInUse if own.any(is_ours) => {
            format!("Bind for {address} failed: port is already allocated")
        }
        io::ErrorKind::AddrInUse => format!(
            "failed to bind host port for {address}:{target}/{}: address already in use",
            port.protocol.as_str()
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "failed to bind host port for {address}:{target}/{}: cannot assign requested address",
            port.protocol.as_str()
        ),
        _ => format!("failed to bind host port for {address}:{target}/{}: {error}", port.protocol.as_str()),
    }
}

fn take_one(
    port: &WantedPort,
    addresses: &[IpAddr],
    target: Target,
) -> Result<Vec<TakenPort>, (SocketAddr, io::Error)> {
    let numbers: Vec<u16> = match &port.candidates {
        Some(range) => range.clone().collect(),
        None => vec![0; TRIES],
    };
    let mut outcome = Ok(Vec::new());
    for number in numbers {
        outcome = take_number(port, number, addresses, target);
        match &outcome {
            Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => break,
        }
    }
    outcome
}

/// The same number on every address. A host without IPv6 has no address of that kind to take.
fn take_number(
    port: &WantedPort,
    mut number: u16,
    addresses: &[IpAddr],
    target: Target,
) -> Result<Vec<TakenPort>, (SocketAddr, io::Error)> {
    let mut taken = Vec::new();
    for address in addresses {
        let Some(ip) = target.of(address.is_ipv4()) else { continue };
        let wanted = SocketAddr::new(*address, number);
        let socket = match ReservedPort::take(port.protocol, wanted) {
            Ok(socket) => socket,
            Err(error) if addresses.len() > 1 && address.is_ipv6() && lacks_family(&error) => continue,
            Err(error) => return Err((wanted, error)),
        };
        number = socket.address().port();
        let (container_port, protocol) = (port.container_port, port.protocol);
        let host = socket.address();
        let port = PublishedPort { container_port, protocol, host, target: SocketAddr::new(ip, container_port) };
        taken.push(TakenPort { port, socket });
    }
    Ok(taken)
}

fn lacks_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(json: serde_json::Value) -> HostConfig {
        serde_json::from_value(json).unwrap()
    }

    fn local(number: Option<RangeInclusive<u16>>) -> WantedPort {
        let address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        WantedPort { container_port: 80, protocol: Protocol::Tcp, address, candidates: number }
    }

    const TARGET: Target = Target { ipv4: Some(Ipv4Addr::new(10, 0, 0, 2)), ipv6: None };

    #[test]
    fn bindings_are_read_as_docker_reads_them() {
        let ports = serde_json::json!({"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
            "53/udp": null, "90": [{"HostPort": "8000-8002"}]}, "PublishAllPorts": true});
        let wanted = wanted_ports(&host(ports), &["80/tcp".into(), "81/tcp".into()]).unwrap();
        assert_eq!(wanted.len(), 4);
        assert_eq!((wanted[0].protocol, wanted[0].candidates.clone()), (Protocol::Udp, None));
        assert_eq!(wanted[1].candidates, Some(8080..=8080));
        assert_eq!(wanted[2].candidates, Some(8000..=8002));
        assert_eq!(wanted[3].container_port, 81);
        for (bad, text) in [
            (
                serde_json::json!({"PortBindings": {"80/tcp": [{"HostPort": "xx"}]}}),
                "invalid port specification: \"xx\"",
            ),
            (serde_json::json!({"PortBindings": {"x/tcp": null}}), "invalid port specification: \"x/tcp\""),
            (
                serde_json::json!({"PortBindings": {"80/tcp": [{"HostPort": "9-8"}]}}),
                "invalid port specification: \"9-8\"",
            ),
            (serde_json::json!({"PortBindings": {"80/tcp": [{"HostIp": "nope"}]}}), "invalid IP address: nope"),
        ] {
            assert_eq!(wanted_ports(&host(bad), &[]).unwrap_err().message, text);
        }
    }

    #[test]
    fn the_next_port_of_a_range_is_taken_and_a_conflict_is_told() {
        let first = take(&[local(None)], TARGET, None, &BTreeSet::new()).unwrap();
        let number = first[0].port.host.port();
        let wanted = local(Some(number..=number.saturating_add(20)));
        let second = take(std::slice::from_ref(&wanted), TARGET, None, &BTreeSet::new()).unwrap();
        assert_ne!(second[0].port.host.port(), number);
        let again = local(Some(number..=number));
        let error = take(std::slice::from_ref(&again), TARGET, None, &BTreeSet::new()).err().unwrap();
        let text = format!("failed to bind host port for 127.0.0.1:{number}:10.0.0.2:80/tcp: address already in use");
        assert_eq!(error, text);
        let own = BTreeSet::from([(Protocol::Tcp, first[0].port.host)]);
        let error = take(&[again], TARGET, None, &own).err().unwrap();
        assert_eq!(error, format!("Bind for 127.0.0.1:{number} failed: port is already allocated"));
        // In one container, too: the first of the two has it.
        drop(second);
        let free = take(&[local(None)], TARGET, None, &BTreeSet::new()).unwrap()[0].port.host.port();
        let twice = [local(Some(free..=free)), local(Some(free..=free))];
        let error = take(&twice, TARGET, None, &BTreeSet::new()).err().unwrap();
        assert_eq!(error, format!("Bind for 127.0.0.1:{free} failed: port is already allocated"));
    }

    #[test]
    fn both_families_get_one_number() {
        let wanted = WantedPort { address: None, ..local(None) };
        let taken = take(&[wanted], TARGET, None, &BTreeSet::new()).unwrap();
        assert!(taken.iter().all(|port| port.port.host.port() == taken[0].port.host.port()));
        assert!(taken[0].port.publication().is_some());
        assert!(taken[1..].iter().all(|port| port.port.publication().is_none()), "IPv6 to IPv4 goes by the proxy");
    }
}
