//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container, as Docker makes them.

use std::net::IpAddr;
use std::path::Path;

use bollard::models::{ContainerConfig, HostConfig};
use hostnet::resolver::ResolvConf;

use super::endpoint::Endpoints;
use crate::error::{ApiError, ApiResult};

/// Name servers where the host has none that a container reaches. Source: moby `libnetwork/resolvconf`.
const PUBLIC_SERVERS: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 4, 4))];

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                     ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// What the files are made of.
#[derive(Debug, Clone, Copy)]
pub struct FilesRequest<'a> {
    /// The container's names.
    pub config: &'a ContainerConfig,
    /// `--dns`, `--add-host`.
    pub host: &'a HostConfig,
    /// Its networks.
    pub endpoints: &'a Endpoints,
    /// Where its name server is, if it has one of the engine's.
    pub name_server: Option<IpAddr>,
    /// What `host-gateway` stands for.
    pub gateway: Option<IpAddr>,
    /// It is on a bridge: what only the host itself reaches is of no use to it.
    pub apart: bool,
}

/// Writes the files into a folder.
///
/// # Errors
/// 400 for a wrong `--add-host`, 500 for a file that cannot be written.
pub fn write_files(dir: &Path, request: &FilesRequest<'_>) -> ApiResult<()> {
    let hostname = request.config.hostname.as_deref().unwrap_or_default();
    let is_host = request.host.network_mode.as_deref() == Some("host");
    let mut hosts = if is_host { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { HOSTS.to_owned() };
    for extra in request.host.extra_hosts.iter().flatten() {
        hosts.push_str(&extra_host(extra, request.gateway)?);
    }
    hosts.extend(own_lines(request.config, request.endpoints));
    let files = [("hostname", format!("{hostname}\n")), ("hosts", hosts), ("resolv.conf", resolv_conf(request))];
    files.into_iter().try_for_each(|(name, text)| {
        std::fs::write(dir.join(name), text).map_err(|error| ApiError::caused(format!("cannot write {name}"), &error))
    })
}

fn extra_host(extra: &str, gateway: Option<IpAddr>) -> ApiResult<String> {
    let bad = || ApiError::invalid(format!("bad format for add-host: {extra:?}"));
    let (name, address) = extra.split_once([':', '=']).ok_or_else(bad)?;
    let address = match (address, gateway) {
        ("host-gateway", Some(gateway)) => gateway.to_string(),
        // At create there is no gateway yet; the files are written again at start.
        ("host-gateway", None) => return Ok(String::new()),
        (text, _) => text.trim_matches(['[', ']']).to_owned(),
    };
    if name.is_empty() || [name, &address].iter().any(|word| word.contains(char::is_whitespace)) {
        return Err(bad());
    }
    Ok(format!("{address}\t{name}\n"))
}

/// A line for each address of the container's.
fn own_lines(config: &ContainerConfig, endpoints: &Endpoints) -> Vec<String> {
    let live = endpoints.all.values().filter_map(|endpoint| endpoint.live.as_ref());
    live.flat_map(|live| live.addresses()).map(|address| own_line(config, address)).collect()
}

fn own_line(config: &ContainerConfig, address: IpAddr) -> String {
    let hostname = config.hostname.as_deref().unwrap_or_default();
    match config.domainname.as_deref().filter(|domain| !domain.is_empty()) {
        Some(domain) => format!("{address}\t{hostname}.{domain} {hostname}\n"),
        None => format!("{address}\t{hostname}\n"),
    }
}

/// Adds or removes the lines of addresses in the file of a container that runs, which keeps its inode.
///
/// # Errors
/// 500 for a file that cannot be read or written.
pub(super) fn change_hosts(dir: &Path, config: &ContainerConfig, addresses: &[IpAddr], add: bool) -> ApiResult<()> {
    let path = dir.join("hosts");
    let failed = |error: std::io::Error| ApiError::caused("cannot change hosts", &error);
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let lines: Vec<String> = addresses.iter().map(|address| own_line(config, *address)).collect();
    let mut changed: String = text.split_inclusive('\n').filter(|line| !lines.iter().any(|own| own == line)).collect();
    if add {
        changed.extend(lines);
    }
    std::fs::write(&path, changed).map_err(failed)
}

/// The client's name servers, or the host's; with a name server of the engine's, that one.
pub(super) fn resolv_conf(request: &FilesRequest<'_>) -> String {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let (servers, search, options) =
        (list(&request.host.dns), list(&request.host.dns_search), list(&request.host.dns_options));
    let asked = !servers.is_empty() || !search.is_empty() || !options.is_empty();
    if !asked && request.name_server.is_none() && !request.apart {
        return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let host = ResolvConf::of_host();
    let mut conf = if request.apart { host.without_loopback() } else { host };
    if !search.is_empty() {
        // A dot is no domain at all.
        conf.search = search.into_iter().filter(|domain| domain != ".").collect();
    }
    if !options.is_empty() {
        conf.options = options;
    }
    if let Some(server) = request.name_server {
        conf.servers = vec![server];
        if !conf.options.iter().any(|option| option.starts_with("ndots:")) {
            conf.options.push("ndots:0".into());
        }
    } else if !servers.is_empty() {
        conf.servers = servers.iter().filter_map(|server| server.parse().ok()).collect();
    } else if conf.servers.is_empty() {
        conf.servers = PUBLIC_SERVERS.into();
    }
    conf.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::endpoint::{Endpoint, LiveEndpoint};

    fn endpoints() -> Endpoints {
        let live = LiveEndpoint {
            id: String::new(),
            interface: "eth0".into(),
            host_link: String::new(),
            ipv4: Some("10.0.0.2/24".parse().unwrap()),
            ipv6: None,
            gateway4: None,
            gateway6: None,
            mac: String::new(),
            names: Vec::new(),
            linked: Vec::new(),
            link_local: Vec::new(),
        };
        let endpoint = Endpoint { live: Some(live), ..Endpoint::default() };
        Endpoints { all: [("web".to_owned(), endpoint)].into(), ..Endpoints::default() }
    }

    #[test]
    fn files_are_as_docker_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        let config = ContainerConfig {
            hostname: Some("h".into()),
            domainname: Some("example.org".into()),
            ..ContainerConfig::default()
        };
        let hosts = ["a:1.2.3.4", "b=[fd00::1]", "c:host-gateway"].map(str::to_owned).to_vec();
        let host = HostConfig {
            extra_hosts: Some(hosts),
            dns_search: Some(vec!["x.y".into()]),
            dns_options: Some(vec!["timeout:1".into()]),
            ..HostConfig::default()
        };
        let endpoints = endpoints();
        let request = FilesRequest {
            config: &config,
            host: &host,
            endpoints: &endpoints,
            name_server: Some(hostnet::dns::ADDRESS.into()),
            gateway: Some("10.0.0.1".parse().unwrap()),
            apart: true,
        };
        write_files(dir.path(), &request).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            read("hosts")
                .ends_with("ff02::2\tip6-allrouters\n1.2.3.4\ta\nfd00::1\tb\n10.0.0.1\tc\n10.0.0.2\th.example.org h\n")
        );
        assert_eq!(read("resolv.conf"), "nameserver 127.0.0.11\nsearch x.y\noptions timeout:1 ndots:0\n");
        let addresses = ["10.0.0.2".parse().unwrap(), "10.1.0.2".parse().unwrap()];
        change_hosts(dir.path(), &config, &addresses, true).unwrap();
        assert_eq!(read("hosts").matches("h.example.org").count(), 2);
        change_hosts(dir.path(), &config, &addresses, false).unwrap();
        assert!(read("hosts").ends_with("10.0.0.1\tc\n"));
        for bad in ["x", "a b:1.2.3.4", ":1.2.3.4"] {
            let host = HostConfig { extra_hosts: Some(vec![bad.into()]), ..HostConfig::default() };
            let error = write_files(dir.path(), &FilesRequest { host: &host, ..request }).unwrap_err();
            assert_eq!(error.message, format!("bad format for add-host: {bad:?}"));
        }
    }

    #[test]
    fn given_servers_win_without_a_name_server_of_the_engines() {
        let (config, endpoints) = (ContainerConfig::default(), Endpoints::default());
        let host = HostConfig { dns: Some(vec!["9.9.9.9".into()]), ..HostConfig::default() };
        let request = FilesRequest {
            config: &config,
            host: &host,
            endpoints: &endpoints,
            name_server: None,
            gateway: None,
            apart: true,
        };
        assert!(resolv_conf(&request).starts_with("nameserver 9.9.9.9\n"));
    }
}
