//! A container's scope: its place among the cgroups of a host where systemd has the say, as on the nodes of most clusters.
//!
//! ```text
//!   cgroupsPath  kubepods-burstable.slice:cri-containerd:ID
//!   systemd's    /kubepods.slice/kubepods-burstable.slice/cri-containerd-ID.scope      made by it, with a process of ours in it
//!   ours                                                  cri-containerd-ID.scope/container    limits, devices, processes
//! ```
//!
//! systemd delegates what lies below the scope, and sets nothing there, not even when it reads its units again; the scope itself stays its
//! own. So the container has a folder in it. The unit ends by itself, with its last process.
//!
//! Source: systemd docs/CGROUP_DELEGATION.md, org.freedesktop.systemd1(5), systemd.unit(5); runc libcontainer/cgroups/systemd; crun has
//! that folder, too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use container::Helper;
use oci_spec::runtime::Spec;
use proto::{ErrorKind, Status};
use zbus::{Connection, Variant};

use crate::bundle::Bundle;

const FOLDER: &str = "container";
const DEFAULT_SLICE: &str = "system.slice";
/// Where version 2's hierarchy is mounted, if there is no other.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Beside version 1: where systemd keeps its units.
const SYSTEMDS: [&str; 2] = ["systemd", "unified"];
/// How long systemd may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Source: systemd.unit(5).
const LONGEST_NAME: usize = 255;

/// Why a container has no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// It has colons, and is no name for a scope.
    #[error("cgroupsPath {0:?} is neither a path nor slice:prefix:name")]
    Name(PathBuf),
    /// No bus, or nobody on it.
    #[error("cgroupsPath asks for a scope of systemd's, which cannot be asked")]
    Systemd(#[source] zbus::Error),
    /// systemd says no, or fails.
    #[error("systemd does not make {0}")]
    Refused(String, #[source] zbus::Error),
    /// It said yes, and did nothing.
    #[error("systemd has not made {0} in {limit} s", limit = PATIENCE.as_secs())]
    Late(String),
    /// The process that is to hold it, or the folder in it.
    #[error("cannot make the cgroup in {0}")]
    Folder(String, #[source] io::Error),
}

impl ScopeError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) => ErrorKind::InvalidArgument,
            Self::Systemd(_) => ErrorKind::FailedPrecondition,
            Self::Late(_) => ErrorKind::DeadlineExceeded,
            Self::Refused(..) | Self::Folder(..) => ErrorKind::Internal,
        }
    }
}

/// A unit that systemd is to make.
#[derive(Debug, PartialEq, Eq)]
struct Scope {
    slice: String,
    unit: String,
}

impl Scope {
    /// What a specification's cgroupsPath asks for; `None` for a path. Shape: `slice:prefix:name`, the first and second of which
    /// may be empty.
    fn of(path: &Path) -> Result<Option<Self>, ScopeError> {
        let invalid = || ScopeError::Name(path.to_owned());
        let text = path.to_str().ok_or_else(invalid)?;
        if text.starts_with('/') || !text.contains(':') {
            return Ok(None);
        }
        let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else { return Err(invalid()) };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        let is_plain = |text: &str| {
            text.len() <= LONGEST_NAME
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@\\".contains(&byte))
        };
        let fits = slice.ends_with(".slice") && !name.is_empty() && is_plain(slice) && is_plain(&unit);
        if fits { Ok(Some(Self { slice: slice.to_owned(), unit })) } else { Err(invalid()) }
    }

    /// Has systemd make it, with that process in it. Answers where it is: below every hierarchy's root.
    async fn make(&self, pid: u32) -> Result<PathBuf, ScopeError> {
        let connection = Connection::system().await.map_err(ScopeError::Systemd)?;
        let properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", Variant::from("Bulkhead's container")),
            ("Slice", Variant::from(self.slice.as_str())),
            ("Delegate", Variant::from(true)),
            ("PIDs", Variant::from(vec![pid])),
            // It ends when it is empty, not before everything else when the host goes down.
            ("DefaultDependencies", Variant::from(false)),
            // Forgotten also when a process of it was killed.
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        let no_others: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let request = (self.unit.as_str(), "fail", properties, no_others);
        let made = connection.call_method(
            Some("org.freedesktop.systemd1"),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.systemd1.Manager"),
            "StartTransientUnit",
            &request,
        );
        let made = tokio::time::timeout(PATIENCE, made).await.map_err(|_| ScopeError::Late(self.unit.clone()))?;
        made.map_err(|error| ScopeError::Refused(self.unit.clone(), error))?;
        // The answer is a job's name: the scope is there when the process is in it.
        let found = async {
            loop {
                match own_cgroup(pid) {
                    Ok(path) if path.file_name().is_some_and(|name| name == self.unit.as_str()) => return Ok(path),
                    Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => return Err(ScopeError::Folder(self.unit.clone(), error)),
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.map_err(|_| ScopeError::Late(self.unit.clone()))?
    }
}

/// Where systemd has a process: in version 2's hierarchy if it is the only one, else in its own.
fn own_cgroup(pid: u32) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let of = |kind: &str| text.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(kind)).map(PathBuf::from);
    of("name=systemd:").or_else(|| of(":")).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Keeps a scope until the container's own processes are in it, or there is no container.
pub struct Held {
    /// In version 2's way of counting: below the hierarchy's root.
    path: PathBuf,
    _process: Helper,
}

impl Held {
    /// The container's first process keeps it from now on. libcontainer puts it in the hierarchies that have controllers; beside
    /// version 1 systemd watches another.
    ///
    /// # Errors
    /// It cannot be moved; then the scope ends, and the container does not.
    pub fn pass_to(self, pid: u32) -> io::Result<()> {
        for hierarchy in SYSTEMDS.map(|name| Path::new(CGROUPS).join(name)).iter().filter(|folder| folder.exists()) {
            enter(hierarchy, &self.path, pid)?;
        }
        Ok(())
    }
}

/// Has systemd make the scope that a bundle asks for, and writes the container's path in it into the bundle. Shape: `None` if it
/// asks for none.
///
/// # Errors
/// [`ScopeError`], and what the bundle says.
pub async fn place(bundle: &Bundle) -> Result<Option<Held>, Status> {
    let of_bundle = |error: crate::bundle::BundleError| Status::from_error(error.kind(), &error);
    let of_scope = |error: ScopeError| Status::from_error(error.kind(), &error);
    let mut spec = bundle.spec().map_err(of_bundle)?;
    let Some(path) = cgroups_path(&spec) else { return Ok(None) };
    let Some(scope) = Scope::of(&path).map_err(of_scope)? else { return Ok(None) };
    // One that moved itself back, as others do for speed, would leave the scope, which ends then.
    let process = Helper::spawn_still().map_err(|error| Status::from_error(error.kind(), &error))?;
    let own = scope.make(process.pid()).await.map_err(of_scope)?;
    let path = own.join(FOLDER);
    let unified = Path::new(CGROUPS);
    if unified.join("cgroup.controllers").exists() {
        // Version 2 hands controllers on only from a cgroup that has no processes of its own; and who finds the folder there takes it as it is.
        let ready = enter(unified, &path, process.pid()).and_then(|()| hand_on(&below(unified, &own)));
        ready.map_err(|error| of_scope(ScopeError::Folder(scope.unit, error)))?;
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(path.clone()));
    }
    bundle.write_spec(&spec).map_err(of_bundle)?;
    Ok(Some(Held { path, _process: process }))
}

fn enter(hierarchy: &Path, path: &Path, pid: u32) -> io::Result<()> {
    let folder = below(hierarchy, path);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("cgroup.procs"), pid.to_string())
}

/// Gives what is in a cgroup the controllers that it has itself.
fn hand_on(folder: &Path) -> io::Result<()> {
    let words: Vec<String> = fs::read_to_string(folder.join("cgroup.controllers"))?
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    fs::write(folder.join("cgroup.subtree_control"), words.join(" "))
}

fn below(hierarchy: &Path, path: &Path) -> PathBuf {
    hierarchy.join(path.strip_prefix("/").unwrap_or(path))
}

/// Removes what is left of a scope in version 1's hierarchies: systemd clears those that it has made it in. When: the container's
/// cgroup is gone, or never was.
pub fn clear(bundle: &Bundle) {
    let path = bundle.spec().ok().as_ref().and_then(cgroups_path);
    let scope =
        path.as_deref().filter(|path| path.file_name().is_some_and(|name| name == FOLDER)).and_then(Path::parent);
    let Some(scope) = scope.filter(|scope| scope.extension().is_some_and(|extension| extension == "scope")) else {
        return;
    };
    for hierarchy in fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
        if SYSTEMDS.iter().any(|own| hierarchy.file_name() == *own) {
            continue;
        }
        match fs::remove_dir(hierarchy.path().join(scope.strip_prefix("/").unwrap_or(scope))) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                tracing::warn!(%error, scope = %scope.display(), "left behind in {}", hierarchy.path().display());
            }
            _ => {}
        }
    }
}

fn cgroups_path(spec: &Spec) -> Option<PathBuf> {
    spec.linux().as_ref()?.cgroups_path().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_systemd_is_told_from_a_path() {
        let scope = |slice: &str, unit: &str| Some(Scope { slice: slice.to_owned(), unit: unit.to_owned() });
        for (path, expected) in [
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:abc",
                scope("kubepods-besteffort-pod1.slice", "cri-containerd-abc.scope"),
            ),
            (":docker:abc", scope("system.slice", "docker-abc.scope")),
            ("a.slice::abc", scope("a.slice", "abc.scope")),
            ("/default/abc", None),
            ("/with:a:colon", None),
            ("relative/abc", None),
        ] {
            assert_eq!(Scope::of(Path::new(path)).unwrap(), expected, "{path}");
        }
        let long = format!("a.slice:b:{}", "c".repeat(250));
        for path in [
            "a:b:c",
            "a.slice:b",
            "a.slice:b:c:d",
            "a.slice:b:",
            "../x.slice:b:c",
            "a.slice:b/:c",
            "a.slice:b:c d",
            &long,
        ] {
            assert_eq!(Scope::of(Path::new(path)).unwrap_err().kind(), ErrorKind::InvalidArgument, "{path}");
        }
    }
}
