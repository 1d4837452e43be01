//! What an operation on a container's files sees besides what the container is made of: binds, volumes, and the files that tell
//! it names (`/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`), as dockerd mounts them. tmpfs is not shown, as with dockerd.
//!
//! Source: moby, daemon/volumes_unix.go, `setupMounts`; container/container_unix.go, `NetworkMounts`.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use proto::Isolation;
use proto::files::{FilesMount, FilesSource};

use crate::container::mount_point::{Below, MountKind, MountPoint};
use crate::container::record::{Phase, Record};
use crate::container::{Container, kept};
use crate::error::{ApiError, ApiResult};
use crate::spec::NETWORK_FILES;

/// Bytes of a file that tells names, as they are sent to a guest.
const MOST_TEXT_BYTES: u64 = 64 << 10;

/// The mounts, as whoever serves the files makes them: a guest knows itself where they are from, and one without a container has
/// none of the host's.
///
/// # Errors
/// A file of the container's cannot be read.
pub fn of(container: &Container, live: bool) -> ApiResult<Vec<FilesMount>> {
    let record = container.record();
    let guest = container.isolation == Isolation::Hyperv;
    let mut mounts = Vec::new();
    if !guest || live {
        mounts.extend(shown(&record).map(|point| mount(point, !guest)));
    }
    // One that has never run does not have them yet.
    if matches!(record.phase, Phase::Created { .. }) {
        return Ok(mounts);
    }
    for name in NETWORK_FILES {
        let destination = PathBuf::from(format!("/etc/{name}"));
        if record.mounts.iter().any(|point| point.destination == destination) {
            continue;
        }
        let path = kept(&container.dir, name);
        let text = if guest && !live { text(&path)? } else { None };
        let source =
            (!guest && path.exists()).then_some(FilesSource { path, part: None, read_only: false, recursive: false });
        if source.is_some() || text.is_some() || (guest && live) {
            mounts.push(FilesMount { destination, source, text });
        }
    }
    Ok(mounts)
}

/// The mounts of a container, with where they are from, if a path lies in one of them. Shape: the path is taken by its letters, as a
/// container's own links are not known here.
pub fn within(container: &Container, path: &str) -> Option<Vec<FilesMount>> {
    let mut plain = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => plain.push(name),
            // The root's parent is the root.
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let record = container.record();
    let lies_in_one = shown(&record).any(|point| plain.starts_with(&point.destination));
    lies_in_one.then(|| shown(&record).map(|point| mount(point, true)).collect())
}

fn shown(record: &Record) -> impl Iterator<Item = &MountPoint> {
    record.mounts.iter().filter(|point| point.kind != MountKind::Tmpfs)
}

fn mount(point: &MountPoint, with_source: bool) -> FilesMount {
    let source = with_source.then(|| FilesSource {
        path: point.source.clone(),
        part: point.subpath.clone(),
        read_only: !point.writable,
        recursive: point.below != Below::Absent,
    });
    FilesMount { destination: point.destination.clone(), source, text: None }
}

fn text(path: &Path) -> ApiResult<Option<String>> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_TEXT_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ApiError::caused(format!("cannot read {}", path.display()), &error)),
    }
}
