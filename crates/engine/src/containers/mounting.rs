//! What is mounted in a container that is being made: read from what the client asked for and what its image wants, volumes
//! found or made, empty ones filled with what the image has at their place.
//!
//! Source: moby `daemon/volumes.go`, `registerMountPoints`; `daemon/create_unix.go`, `createContainerOSSpecificSettings`.

mod binds;
mod copy_up;
mod typed;

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};

use bollard::models::{ContainerConfig, HostConfig};
use image::Image;

use crate::container::mount_point::{MountKind, MountPoint};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::volume::{VolumeLease, Wanted};
use crate::volumes;

pub use typed::unknown_type as unknown_mount_type;

/// A mount as a client describes it, and the volume that is to be found or made for it.
#[derive(Debug, Clone)]
struct Described {
    point: MountPoint,
    volume: Option<Wanted>,
}

/// The mounts of a container that is being made. Its volumes are not removed while this lives; those that were made for it go
/// with it, unless the container was made.
pub struct Mounting<'e> {
    engine: &'e Engine,
    /// By destination.
    points: BTreeMap<PathBuf, MountPoint>,
    leases: Vec<VolumeLease>,
    made: Vec<String>,
}

impl<'e> Mounting<'e> {
    /// Decides. When: in a thread that may wait.
    ///
    /// # Errors
    /// 400 for what can never be, 404 for a container or driver that is not there, 501 for what this version does not do.
    pub fn decide(engine: &'e Engine, config: &ContainerConfig, host: &HostConfig, image: &Image) -> ApiResult<Self> {
        let mut mounting = Self { engine, points: BTreeMap::new(), leases: Vec::new(), made: Vec::new() };
        mounting.take_from_others(host)?;
        let mut seen: HashSet<PathBuf> = host.tmpfs.iter().flatten().map(|(path, _)| clean(path)).collect();
        let driver = host.volume_driver.as_deref().unwrap_or_default();
        let binds = host.binds.iter().flatten().map(|text| binds::parse(text, driver));
        let typed = host.mounts.iter().flatten().map(typed::read);
        for described in binds.chain(typed) {
            let described = described?;
            let destination = described.point.destination.clone();
            if !seen.insert(destination.clone()) {
                return Err(ApiError::invalid(format!("Duplicate mount point: {}", destination.display())));
            }
            mounting.add(described)?;
        }
        for path in config.volumes.iter().flatten() {
            let destination = absolute(path).map_err(|error| ApiError::invalid(format!("invalid volume: {error}")))?;
            if !seen.contains(&destination) && !mounting.points.contains_key(&destination) {
                let mut point = MountPoint::new(MountKind::Volume, destination);
                point.anonymous = true;
                mounting.add(Described { point, volume: Some(Wanted::default()) })?;
            }
        }
        copy_up::fill(engine, image, &mounting)?;
        Ok(mounting)
    }

    /// The mounts, by destination.
    pub fn points(&self) -> Vec<MountPoint> {
        self.points.values().cloned().collect()
    }

    /// The container is there, and uses its volumes from now on.
    pub fn keep(mut self) {
        self.made.clear();
    }

    /// `--volumes-from CONTAINER[:ro]`.
    fn take_from_others(&mut self, host: &HostConfig) -> ApiResult<()> {
        for text in host.volumes_from.iter().flatten() {
            let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
            if name.is_empty() {
                return Err(ApiError::invalid(format!("invalid volumes-from specification: {text:?}")));
            }
            if !binds::is_mode(mode) {
                return Err(ApiError::invalid(format!("invalid mode: {mode}")));
            }
            // 400, as dockerd: after a 404 the docker CLI would pull the image.
            let other = self.engine.containers.find(name).map_err(|error| ApiError::invalid(error.message))?;
            let theirs = other.record().mounts.clone();
            for point in theirs.into_iter().filter(|point| point.kind != MountKind::Tmpfs) {
                if point.kind == MountKind::Volume {
                    let named = Wanted { name: Some(point.name.clone()), ..Wanted::default() };
                    self.leases.push(self.engine.volumes.create(named)?.0);
                }
                let writable = point.writable && !mode.split(',').any(|word| word == "ro");
                let point = MountPoint { writable, copy: false, mode: String::new(), ..point };
                self.points.insert(point.destination.clone(), point);
            }
        }
        Ok(())
    }

    fn add(&mut self, described: Described) -> ApiResult<()> {
        let Described { mut point, volume } = described;
        if let Some(wanted) = volume {
            let (lease, made) = self.engine.volumes.create(wanted)?;
            point.name.clone_from(&lease.0.name);
            point.source = lease.0.data();
            if made {
                self.made.push(point.name.clone());
                volumes::emit(self.engine, "create", &point.name, &[]);
            }
            if point.mode.is_empty() && !point.anonymous {
                point.mode = "z".into();
            }
            self.leases.push(lease);
        }
        self.points.insert(point.destination.clone(), point);
        Ok(())
    }
}

/// The binds of a container that an engine without volumes made. What cannot be read then stopped its start before, too.
#[must_use]
pub fn plain_binds(host: &HostConfig) -> Vec<MountPoint> {
    let binds = host.binds.iter().flatten().map(|text| binds::parse(text, ""));
    let described = binds.chain(host.mounts.iter().flatten().map(typed::read)).flatten();
    described.filter(|described| described.volume.is_none()).map(|described| described.point).collect()
}

impl Drop for Mounting<'_> {
    fn drop(&mut self) {
        self.leases.clear();
        for name in std::mem::take(&mut self.made) {
            if let Err(error) = volumes::discard(self.engine, &name) {
                tracing::debug!(volume = name, %error, "a volume of a container that was not made stays");
            }
        }
    }
}

/// A mount's place in the container: absolute, not the root, nothing in it that leads upwards.
///
/// # Errors
/// dockerd's text.
fn absolute(destination: &str) -> Result<PathBuf, String> {
    if destination.is_empty() {
        return Err("field Target must not be empty".into());
    }
    if !Path::new(destination).is_absolute() {
        return Err(format!("invalid mount path: '{destination}' mount path must be absolute"));
    }
    let clean = clean(destination);
    if clean == Path::new("/") {
        return Err("invalid specification: destination can't be '/'".into());
    }
    Ok(clean)
}

/// An absolute path without `.` and `..`.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// The source of a bind is a file or folder of the host, and none that changes with who looks at it; nor is there a link on the way
/// that leads to one.
///
/// # Errors
/// What is wrong with it.
fn check_bind_source(source: &Path) -> Result<(), String> {
    let own = ["/proc/self", "/proc/thread-self", "/dev/fd"];
    let reached = source.canonicalize().unwrap_or_default();
    let leads_here = reached.starts_with(format!("/proc/{}", std::process::id()));
    if leads_here || own.iter().any(|path| source.starts_with(path)) {
        return Err(format!("bind source path {} would be the engine's own", source.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_absolute_and_not_the_root() {
        assert_eq!(absolute("/a/../../etc/x").unwrap(), Path::new("/etc/x"));
        for (bad, text) in [
            ("b", "invalid mount path: 'b' mount path must be absolute"),
            ("/b/..", "invalid specification: destination can't be '/'"),
            ("", "field Target must not be empty"),
        ] {
            assert_eq!(absolute(bad).unwrap_err(), text);
        }
    }

    #[test]
    fn a_source_that_changes_with_the_reader_is_refused() {
        for bad in ["/proc/self/mem", "/proc/thread-self/root", "/dev/fd/0"] {
            assert!(check_bind_source(Path::new(bad)).is_err(), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self/mem", &link).unwrap();
        assert!(check_bind_source(&link).is_err());
        check_bind_source(Path::new("/proc/selfish")).unwrap();
    }
}
