//! The sockets that the engine serves.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Served when no `-H` is given and no socket was passed.
const DEFAULT_HOST: &str = "unix:///run/bulkhead.sock";
/// The sockets that a service manager has passed.
const PASSED: &str = "fd://";
/// May use the sockets when no `--group` is given.
const DEFAULT_GROUP: &str = "bulkhead";
/// Longest path that fits a socket address, with its final NUL. Source: unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// A socket that is served, and its file, removed on drop when this process made it.
#[derive(Debug)]
pub struct Socket {
    /// Accepts connections; nonblocking.
    pub listener: UnixListener,
    /// What `-H` said.
    pub address: String,
    path: Option<PathBuf>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(path = %path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Opens every address.
///
/// # Errors
/// One line naming the address: an unknown form, a live engine behind it, a folder that cannot be written.
pub fn open_all(hosts: &[String], passed: Vec<OwnedFd>, group: Option<&str>) -> anyhow::Result<Vec<Socket>> {
    check(hosts)?;
    let group = group_id_of(group)?;
    let default = [if passed.is_empty() { DEFAULT_HOST } else { PASSED }.to_owned()];
    let hosts = if hosts.is_empty() { &default[..] } else { hosts };
    let mut passed = Some(passed);
    let mut sockets = Vec::new();
    for host in hosts {
        if let Some(path) = host.strip_prefix("unix://") {
            sockets.push(bind(Path::new(path), host, group)?);
        } else {
            sockets.extend(take_passed(passed.take().unwrap_or_default(), host)?);
        }
    }
    if passed.is_some_and(|passed| !passed.is_empty()) {
        tracing::warn!("the socket that the service manager passed is not served, since no host is {PASSED}");
    }
    Ok(sockets)
}

/// Checks the form of every address.
///
/// # Errors
/// One line naming the first that is neither `unix://PATH` nor `fd://`.
pub fn check(hosts: &[String]) -> anyhow::Result<()> {
    match hosts.iter().find(|host| !host.starts_with("unix://") && !host.starts_with("fd://")) {
        Some(host) => bail!("cannot serve {host:?}: only unix://PATH and fd:// are supported"),
        None => Ok(()),
    }
}

fn take_passed(passed: Vec<OwnedFd>, host: &str) -> anyhow::Result<Vec<Socket>> {
    if passed.is_empty() {
        bail!(
            "cannot serve {host}: no socket was passed (LISTEN_FDS); start through a socket unit, or use -H unix://PATH"
        );
    }
    let take = |fd: OwnedFd| {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true).with_context(|| format!("cannot use a socket passed for {host}"))?;
        Ok(Socket { listener, address: host.to_owned(), path: None })
    };
    passed.into_iter().map(take).collect()
}

/// Binds a socket file that only root and a group may use.
fn bind(path: &Path, host: &str, group: Option<u32>) -> anyhow::Result<Socket> {
    if !path.is_absolute() {
        bail!("cannot serve {host}: the socket's path must be absolute");
    }
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        bail!(
            "cannot serve {host}: a socket's path may have {MAX_SOCKET_PATH} characters at most; choose a shorter one"
        );
    }
    let listener = match bind_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, host)?;
            bind_private(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            bind_private(path)
        }
        other => other,
    };
    let listener = listener.with_context(|| format!("cannot serve {host}"))?;
    let socket = Socket { listener, address: host.to_owned(), path: Some(path.to_owned()) };
    open_to_group(path, group).with_context(|| format!("cannot set who may use {host}"))?;
    socket.listener.set_nonblocking(true).with_context(|| format!("cannot serve {host}"))?;
    Ok(socket)
}

/// Binds so that nobody else can connect before the permissions are set.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

fn remove_stale(path: &Path, host: &str) -> anyhow::Result<()> {
    let metadata = std::fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.file_type().is_socket() {
        bail!("cannot serve {host}: {} is there and is no socket; remove it or choose another path", path.display());
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("cannot serve {host}: a live engine has this socket; stop it or choose another path"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of an engine that is gone");
            std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot tell whether {host} is in use")),
    }
}

/// The number of the group that may use the sockets: the one that was asked for, or [`DEFAULT_GROUP`] if it is there.
fn group_id_of(group: Option<&str>) -> anyhow::Result<Option<u32>> {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    match group {
        None => Ok(group_id(&groups, DEFAULT_GROUP)),
        Some(name) => match group_id(&groups, name).or_else(|| name.parse().ok()) {
            Some(id) => Ok(Some(id)),
            None => bail!("there is no group {name:?} (--group)"),
        },
    }
}

fn open_to_group(path: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(gid) = group {
        std::os::unix::fs::chown(path, None, Some(gid))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
}

/// The number of a group in the text of `/etc/group`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/s");
        let host = format!("unix://{}", path.display());
        let first = bind(&path, &host, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = format!("{:#}", bind(&path, &host, None).unwrap_err());
        assert!(error.contains("a live engine has this socket"), "{error}");
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        bind(&path, &host, None).unwrap();
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let long = format!("unix:///{}", "x".repeat(110));
        let file = format!("unix://{}", dir.path().join("f").display());
        for (host, text) in [
            ("tcp://0:1", "only unix://"),
            ("unix://x", "absolute"),
            (&long, "107"),
            (&file, "no socket"),
            ("fd://", "LISTEN_FDS"),
        ] {
            let error = format!("{:#}", open_all(&[host.to_owned()], Vec::new(), None).unwrap_err());
            assert!(error.contains(text), "{host}: {error}");
        }
    }

    #[test]
    fn a_socket_that_was_passed_is_served_unless_another_host_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let passed = || vec![OwnedFd::from(UnixListener::bind(dir.path().join("passed")).unwrap())];
        let served = |hosts: &[String]| {
            let sockets = open_all(hosts, passed(), None).unwrap();
            std::fs::remove_file(dir.path().join("passed")).unwrap();
            sockets.iter().map(|socket| socket.address.clone()).collect::<Vec<_>>()
        };
        assert_eq!(served(&[]), ["fd://"]);
        let other = format!("unix://{}/other", dir.path().display());
        assert_eq!(served(std::slice::from_ref(&other)), [other.as_str()]);
        assert_eq!(served(&[other.clone(), "fd://".into()]), [other.as_str(), "fd://"]);
    }

    #[test]
    fn the_group_is_found_by_its_name() {
        assert_eq!(group_id("root:x:0:\ndockerx:x:7:\ndocker:x:998:me\n", "docker"), Some(998));
        assert_eq!(group_id("", "docker"), None);
        assert_eq!((group_id_of(Some("root")).unwrap(), group_id_of(Some("77")).unwrap()), (Some(0), Some(77)));
        assert!(group_id_of(Some("no-such-group")).is_err());
    }
}
