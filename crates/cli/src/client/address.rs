//! Where the engine is: `-H`, `-c`, the environment, docker's contexts, or the default socket.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where bulkheadd serves unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/bulkhead.sock";
/// docker's name for no context.
const NO_CONTEXT: &str = "default";

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownAddress {
    /// Neither a socket of this host nor one behind SSH.
    #[error("cannot use the engine address {0:?}: only unix:///PATH and ssh://[USER@]HOST[:PORT][/PATH] are supported")]
    Form(String),
    /// TCP.
    #[error(
        "cannot use the engine address {0:?}: the engine serves no TCP, since whoever reached it would be root; use ssh://[USER@]HOST"
    )]
    Tcp(String),
    /// `-H` and `-c` at once.
    #[error("conflicting options: either specify --host or --context, not both")]
    Both,
    /// No such context.
    #[error("context {name:?}: context not found: no {what} in {}", folder.display())]
    NoContext {
        /// Its name.
        name: String,
        /// What is missing.
        what: &'static str,
        /// Where contexts are kept.
        folder: PathBuf,
    },
}

/// An engine's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket of this host.
    Unix(PathBuf),
    /// A socket of another host, reached by `ssh` and that host's `bulkhead system dial-stdio`.
    Ssh(SshAddress),
}

/// What `ssh` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAddress {
    /// User there.
    pub user: Option<String>,
    /// Host, or a name in `~/.ssh/config`.
    pub host: String,
    /// Port.
    pub port: Option<u16>,
    /// The socket there, if it is not that host's own choice.
    pub socket: Option<String>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Ssh(ssh) => {
                let user = ssh.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                let port = ssh.port.map(|port| format!(":{port}")).unwrap_or_default();
                write!(f, "ssh://{user}{}{port}{}", ssh.host, ssh.socket.as_deref().unwrap_or_default())
            }
        }
    }
}

/// What the command line says of the engine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// `-H`.
    pub host: Option<&'a str>,
    /// `-c`.
    pub context: Option<&'a str>,
}

/// Chooses as docker does: the command line, `BULKHEAD_HOST`, `DOCKER_HOST`, `DOCKER_CONTEXT`, the current context of
/// docker's `config.json`, the default socket. Source: docker/cli `resolveContextName`.
///
/// # Errors
/// [`UnknownAddress`]
pub fn choose(asked: Asked<'_>, environment: impl Fn(&str) -> Option<String>) -> Result<Address, UnknownAddress> {
    let given = |name: &str| environment(name).filter(|value| !value.is_empty());
    if asked.host.is_some() && asked.context.is_some() {
        return Err(UnknownAddress::Both);
    }
    let environment_host = || given("BULKHEAD_HOST").or_else(|| given("DOCKER_HOST"));
    let folder = given("DOCKER_CONFIG")
        .map_or_else(|| PathBuf::from(given("HOME").unwrap_or_else(|| "/root".into())).join(".docker"), PathBuf::from);
    let named = match (asked.context, asked.host) {
        (Some(context), _) => Some(context.to_owned()),
        (None, None) if environment_host().is_none() => given("DOCKER_CONTEXT").or_else(|| current_context(&folder)),
        (None, _) => None,
    };
    if let Some(name) = named.filter(|name| name != NO_CONTEXT) {
        return parse(&context_host(&folder, &name)?);
    }
    match asked.host.map(str::to_owned).or_else(environment_host) {
        Some(address) => parse(&address),
        None => Ok(Address::Unix(DEFAULT_SOCKET.into())),
    }
}

fn parse(address: &str) -> Result<Address, UnknownAddress> {
    let unknown = || UnknownAddress::Form(address.to_owned());
    if let Some(path) = address.strip_prefix("unix://") {
        return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(unknown()) };
    }
    if ["tcp://", "http://", "https://"].iter().any(|scheme| address.starts_with(scheme)) {
        return Err(UnknownAddress::Tcp(address.to_owned()));
    }
    let rest = address.strip_prefix("ssh://").ok_or_else(unknown)?;
    let (authority, socket) = match rest.find('/') {
        Some(at) => (&rest[..at], Some(rest[at..].to_owned()).filter(|path| path != "/")),
        None => (rest, None),
    };
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, Some(port.parse().map_err(|_| unknown())?)),
        _ => (host, None),
    };
    // An ssh that took a name for an option would run anything.
    let safe = |text: &str| !text.is_empty() && !text.starts_with('-') && !text.contains(char::is_whitespace);
    if !safe(host) || user.is_some_and(|user| !safe(user)) {
        return Err(unknown());
    }
    Ok(Address::Ssh(SshAddress { user: user.map(str::to_owned), host: host.to_owned(), port, socket }))
}

/// What docker's `config.json` says; a file that cannot be read says nothing.
fn current_context(folder: &Path) -> Option<String> {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    config["currentContext"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The address of a context. Its folder's name is a digest of the context's name, so all are looked through.
fn context_host(folder: &Path, name: &str) -> Result<String, UnknownAddress> {
    let folder = folder.join("contexts/meta");
    let missing = |what| UnknownAddress::NoContext { name: name.to_owned(), what, folder: folder.clone() };
    let entries = std::fs::read_dir(&folder).map_err(|_| missing("context"))?;
    let read = |entry: std::fs::DirEntry| -> Option<Value> {
        serde_json::from_slice(&std::fs::read(entry.path().join("meta.json")).ok()?).ok()
    };
    let found = entries.flatten().filter_map(read).find(|meta| meta["Name"] == name);
    let found = found.ok_or_else(|| missing("such context"))?;
    found["Endpoints"]["docker"]["Host"].as_str().map(str::to_owned).ok_or_else(|| missing("docker endpoint"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str) -> Address {
        Address::Unix(path.into())
    }

    fn from_flag(host: &str) -> Result<Address, UnknownAddress> {
        choose(Asked { host: Some(host), context: None }, |_| None)
    }

    #[test]
    fn the_nearest_address_wins() {
        let environment = |name: &str| match name {
            "BULKHEAD_HOST" => Some("unix:///b".to_owned()),
            "DOCKER_HOST" => Some("unix:///d".to_owned()),
            _ => None,
        };
        let docker = |name: &str| (name == "DOCKER_HOST").then(|| "unix:///d".to_owned());
        assert_eq!(choose(Asked { host: Some("unix:///f"), context: None }, environment).unwrap(), unix("/f"));
        assert_eq!(choose(Asked::default(), environment).unwrap(), unix("/b"));
        assert_eq!(choose(Asked::default(), docker).unwrap(), unix("/d"));
        assert_eq!(
            choose(Asked::default(), |name| (name == "HOME").then(|| "/nonexistent".into())).unwrap(),
            unix(DEFAULT_SOCKET)
        );
        assert!(from_flag("tcp://1.2.3.4:2375").unwrap_err().to_string().contains("use ssh://"));
        for bad in ["unix://relative", "/run/x.sock", "", "ssh://", "ssh://-oProxyCommand=x", "ssh://h:x"] {
            assert!(from_flag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_behind_ssh_has_its_parts() {
        let Address::Ssh(ssh) = from_flag("ssh://me@box:2222/run/other.sock").unwrap() else { panic!("not ssh") };
        assert_eq!((ssh.user.as_deref(), ssh.host.as_str(), ssh.port), (Some("me"), "box", Some(2222)));
        assert_eq!(ssh.socket.as_deref(), Some("/run/other.sock"));
        for text in ["ssh://box", "ssh://me@box:22/s"] {
            assert_eq!(from_flag(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn dockers_contexts_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let meta = folder.path().join("contexts/meta/0123abcd");
        std::fs::create_dir_all(&meta).unwrap();
        let text =
            r#"{"Name":"other","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///other","SkipTLSVerify":false}}}"#;
        std::fs::write(meta.join("meta.json"), text).unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"currentContext":"other"}"#).unwrap();
        let with = |more: Option<(&'static str, &'static str)>| {
            let config = folder.path().to_str().unwrap().to_owned();
            move |name: &str| match more {
                Some((known, value)) if known == name => Some(value.to_owned()),
                _ => (name == "DOCKER_CONFIG").then(|| config.clone()),
            }
        };
        let context = |name| Asked { host: None, context: Some(name) };
        assert_eq!(choose(Asked::default(), with(None)).unwrap(), unix("/other"), "the current one");
        assert_eq!(choose(Asked::default(), with(Some(("DOCKER_HOST", "unix:///d")))).unwrap(), unix("/d"));
        assert_eq!(choose(Asked::default(), with(Some(("DOCKER_CONTEXT", "default")))).unwrap(), unix(DEFAULT_SOCKET));
        assert_eq!(choose(context("other"), with(Some(("DOCKER_HOST", "unix:///d")))).unwrap(), unix("/other"));
        assert_eq!(choose(context("default"), with(None)).unwrap(), unix(DEFAULT_SOCKET));
        let error = choose(context("nope"), with(None)).unwrap_err().to_string();
        assert!(error.contains("context \"nope\": context not found"), "{error}");
        let both = Asked { host: Some("unix:///x"), context: Some("other") };
        assert_eq!(choose(both, with(None)), Err(UnknownAddress::Both));
    }
}
