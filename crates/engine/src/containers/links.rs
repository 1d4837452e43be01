//! `--link` on the default bridge, where names do not resolve: another container's address in `/etc/hosts`, and what it
//! exposes in the environment. (On networks with names a link is an alias: [`crate::network`] has those.)
//!
//! Source: Docker's documentation of legacy container links; moby `daemon/links`.

use std::net::IpAddr;
use std::path::Path;

use bollard::models::{ContainerConfig, HostConfig};
use proto::{ContainerId, ErrorKind};

use crate::container::Container;
use crate::container::record::Record;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::network::{Link, parse_link};

/// The one network on which links are of this kind.
const BRIDGE: &str = "bridge";
/// Links of one container.
const MOST: usize = 128;

/// Finds the containers that a new one is linked to.
///
/// # Errors
/// 400 for a link that is none, leads to no container, or to one on the host's network.
pub fn decide(engine: &Engine, host: &HostConfig) -> ApiResult<Vec<Link>> {
    let texts = host.links.as_deref().unwrap_or_default();
    if !matches!(host.network_mode.as_deref(), None | Some("" | "default" | BRIDGE)) {
        return texts.iter().try_for_each(|text| parse_link(text).map(drop)).map(|()| Vec::new());
    }
    if texts.len() > MOST {
        return Err(ApiError::invalid(format!("a container may have {MOST} links at most")));
    }
    let mut links: Vec<Link> = Vec::new();
    for text in texts {
        let (name, alias) = parse_link(text)?;
        if alias.is_empty() || alias.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
            return Err(ApiError::invalid(format!("bad format for links: {text}")));
        }
        let target = target(engine, name)?;
        links.retain(|link| link.alias != alias);
        links.push(Link { alias: alias.to_owned(), target: target.id.clone() });
    }
    Ok(links)
}

/// A container by name; who shares another's network is that one.
fn target(engine: &Engine, name: &str) -> ApiResult<std::sync::Arc<Container>> {
    // Not 404: the client would take the image to be missing.
    let missing = |error: ApiError| match error.kind {
        ErrorKind::NotFound => ApiError::invalid(format!("could not get container for {name}: {}", error.message)),
        _ => error.context(format!("could not get container for {name}")),
    };
    let mut found = engine.containers.find(name).map_err(missing)?;
    // Each leads to an older one, so there is an end.
    loop {
        let mode = found.record().host_text("NetworkMode").to_owned();
        if mode == "host" {
            return Err(ApiError::invalid(
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
            ));
        }
        match mode.strip_prefix("container:") {
            Some(other) => found = engine.containers.find(other).map_err(missing)?,
            None => return Ok(found),
        }
    }
}

/// A link as it is now.
struct Linked {
    /// The name that its owner has for the other container.
    alias: String,
    /// `/OWNER/ALIAS`.
    path: String,
    other: std::sync::Arc<Container>,
}

/// The links of a container whose other end is still there.
fn linked(engine: &Engine, record: &Record) -> Vec<Linked> {
    let found = |link: &Link| {
        let other = engine.containers.find(link.target.as_str()).ok()?;
        Some(Linked { alias: link.alias.clone(), path: format!("/{}/{}", record.name, link.alias), other })
    };
    record.links.iter().filter_map(found).collect()
}

/// What a container's address is on the default bridge, while it runs.
fn address(container: &Container) -> Option<IpAddr> {
    let record = container.record();
    let live = record.network.all.get(BRIDGE)?.live.as_ref()?;
    live.ipv4.map(|net| IpAddr::V4(net.addr()))
}

/// Writes a container's links into its `hosts`. When: that file was just made.
///
/// # Errors
/// 500, as dockerd, when a container that it is linked to does not run, or is not on the default bridge.
pub fn write_hosts(engine: &Engine, container: &Container) -> ApiResult<()> {
    let record = container.record().clone();
    let mut lines = String::new();
    for Linked { alias, path, other } in linked(engine, &record) {
        let name = other.name();
        if !other.record().phase.is_running() {
            return Err(ApiError::internal(format!("Cannot link to a non running container: /{name} AS {path}")));
        }
        let Some(address) = address(&other) else {
            let text = format!("Cannot link to /{name}, as it does not belong to the default network");
            return Err(ApiError::internal(text));
        };
        lines += &format!("{address}\t{}\n", host_names(&alias, &other));
    }
    if lines.is_empty() { Ok(()) } else { change_hosts(&container.dir, |text| text + &lines) }
}

/// Under which names a linked container is found: the alias, its host name, its own name.
fn host_names(alias: &str, other: &Container) -> String {
    let record = other.record();
    let hostname = record.config["Hostname"].as_str().unwrap_or_default();
    let mut names = vec![alias];
    names.extend([hostname, record.name.as_str()].into_iter().filter(|name| !name.is_empty() && *name != alias));
    names.join(" ")
}

fn change_hosts(dir: &Path, change: impl FnOnce(String) -> String) -> ApiResult<()> {
    let path = dir.join("hosts");
    // In place: a container that runs has this file mounted.
    let changed = std::fs::read_to_string(&path).map(change).and_then(|text| std::fs::write(&path, text));
    changed.map_err(|error| ApiError::caused("cannot change hosts", &error))
}

/// Tells the containers that are linked to one which has another address now.
pub fn tell_owners(engine: &Engine, container: &Container) {
    let Some(address) = address(container) else { return };
    for owner in engine.containers.all() {
        let record = owner.record().clone();
        let aliases = record.links.iter().filter(|link| link.target == container.id).map(|link| link.alias.clone());
        for alias in aliases.filter(|_| record.phase.is_running()) {
            let names = host_names(&alias, container);
            let changed = change_hosts(&owner.dir, |text| with_address(&text, address, &names));
            if let Err(error) = changed {
                tracing::warn!(id = %owner.id, "a linked container's new address is not known: {error}");
            }
        }
    }
}

/// The file with another address for these names.
fn with_address(text: &str, address: IpAddr, names: &str) -> String {
    let line = |line: &str| match line.split_once('\t') {
        Some((_, rest)) if rest == names => format!("{address}\t{names}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// What links put into a container's environment. Of containers that do not run (any more), nothing.
pub fn environment(engine: &Engine, container: &Container) -> Vec<String> {
    let record = container.record().clone();
    let mut environment = Vec::new();
    for Linked { path, other, .. } in linked(engine, &record) {
        if let (Some(address), Ok(config)) = (address(&other), other.config()) {
            environment.extend(variables(&path, address, &config));
        }
    }
    environment
}

/// The variables of one link. Shape: `path` is `/OWNER/ALIAS`.
fn variables(path: &str, address: IpAddr, other: &ContainerConfig) -> Vec<String> {
    let alias = path.rsplit('/').next().unwrap_or(path).to_uppercase().replace('-', "_");
    let port = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        Some((number.parse::<u16>().ok()?, protocol.to_lowercase()))
    };
    let mut ports: Vec<(u16, String)> = other.exposed_ports.iter().flatten().filter_map(port).collect();
    // Of one number, TCP is first.
    ports.sort_by_key(|(number, protocol)| (*number, protocol != "tcp"));
    let mut variables = Vec::new();
    if let Some((number, protocol)) = ports.iter().find(|(_, protocol)| protocol == "tcp").or(ports.first()) {
        variables.push(format!("{alias}_PORT={protocol}://{address}:{number}"));
    }
    for (number, protocol) in &ports {
        let name = format!("{alias}_PORT_{number}_{}", protocol.to_uppercase());
        variables.push(format!("{name}={protocol}://{address}:{number}"));
        variables.push(format!("{name}_ADDR={address}"));
        variables.push(format!("{name}_PORT={number}"));
        variables.push(format!("{name}_PROTO={protocol}"));
    }
    variables.push(format!("{alias}_NAME={path}"));
    // What every image has is nothing to tell.
    let told = other.env.iter().flatten().filter_map(|entry| entry.split_once('='));
    let told = told.filter(|(name, _)| !matches!(*name, "HOME" | "PATH"));
    variables.extend(told.map(|(name, value)| format!("{alias}_ENV_{name}={value}")));
    variables
}

/// `HostConfig.Links` as `inspect` shows it.
pub fn shown(engine: &Engine, record: &Record) -> Vec<String> {
    linked(engine, record).iter().map(|link| format!("/{}:{}", link.other.name(), link.path)).collect()
}

/// Under which names others know a container: `/OWNER/ALIAS`.
pub fn names_of(owners: &[std::sync::Arc<Container>], id: &ContainerId) -> Vec<String> {
    let mut names = Vec::new();
    for owner in owners {
        let record = owner.record();
        let links = record.links.iter().filter(|link| link.target == *id);
        names.extend(links.map(|link| format!("/{}/{}", record.name, link.alias)));
    }
    names
}

/// Removes a link: `path` is `OWNER/ALIAS`.
///
/// # Errors
/// 404 and 400 in dockerd's words.
pub async fn remove(engine: &Engine, path: &str) -> ApiResult<()> {
    let path = path.trim_start_matches('/');
    let Some((owner, alias)) = path.split_once('/').filter(|(owner, _)| !owner.is_empty()) else {
        engine.containers.find(path)?;
        return Err(ApiError::invalid("Conflict, cannot remove the default link name of the container"));
    };
    let none = || ApiError::invalid(format!("Cannot get parent /{owner} for link /{path}"));
    let owner = engine.containers.find(owner).map_err(|_| none())?;
    let before = owner.record().links.len();
    owner.record().links.retain(|link| link.alias != alias);
    if owner.record().links.len() == before {
        return Err(ApiError::not_found(format!("No such container: {path}")));
    }
    owner.save().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_tells_ports_and_variables() {
        let other = ContainerConfig {
            exposed_ports: Some(vec!["53/udp".into(), "80/tcp".into()]),
            env: Some(vec!["A=1=2".into(), "PATH=/bin".into(), "alone".into()]),
            ..ContainerConfig::default()
        };
        let variables = variables("/web/my-db", "172.17.0.2".parse().unwrap(), &other);
        assert_eq!(
            variables,
            [
                "MY_DB_PORT=tcp://172.17.0.2:80",
                "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
                "MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_80_TCP=tcp://172.17.0.2:80",
                "MY_DB_PORT_80_TCP_ADDR=172.17.0.2",
                "MY_DB_PORT_80_TCP_PORT=80",
                "MY_DB_PORT_80_TCP_PROTO=tcp",
                "MY_DB_NAME=/web/my-db",
                "MY_DB_ENV_A=1=2",
            ]
        );
    }

    #[test]
    fn a_new_address_replaces_the_old_one_of_the_same_names() {
        let text = "127.0.0.1\tlocalhost\n172.17.0.2\tdb abc\n172.17.0.3\tme\n";
        let changed = with_address(text, "172.17.0.9".parse().unwrap(), "db abc");
        assert_eq!(changed, "127.0.0.1\tlocalhost\n172.17.0.9\tdb abc\n172.17.0.3\tme\n");
    }
}
