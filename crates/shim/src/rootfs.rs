//! The root file system of a process container, mounted in the shim's own mount namespace.
//!
//! Our engine's bundle: EROFS layers and an upper folder ([`container::rootfs`]). A foreign containerd's: what its
//! snapshotter wants mounted on `<bundle>/rootfs`, or nothing when the specification names a folder that is there.
//!
//! Source: containerd api/types/mount.proto, `core/mount/mount_linux.go`.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use container::rootfs::{LayerSource, MountedRootfs, RootfsError, Upper};
use containerd_shim_protos::api::Mount;
use proto::ErrorKind;
use proto::control::{LayerFile, UpperDisk};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};

/// A root file system that cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Layers and upper folder.
    #[error("cannot mount the image's layers")]
    Layers(#[source] RootfsError),
    /// One of a snapshotter's mounts.
    #[error("cannot mount {source_path} ({kind}) on {}", target.display())]
    Foreign {
        /// overlay, bind, ...
        kind: String,
        /// What.
        source_path: String,
        /// Where.
        target: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It does not go away.
    #[error("cannot unmount {}", target.display())]
    Unmount {
        /// Where.
        target: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl MountError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Layers(error) => error.kind(),
            Self::Foreign { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Foreign { source, .. } if source.kind() == io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            Self::Foreign { .. } | Self::Unmount { .. } => ErrorKind::Internal,
        }
    }
}

/// A mounted root file system; unmounted when dropped.
pub enum Rootfs {
    /// Our engine's. Shape: the whole, and the disk that its changes are on, if there is one.
    Layers(MountedRootfs, Option<MountedRootfs>),
    /// A snapshotter's.
    Foreign(ForeignMounts),
    /// The specification's folder, as it is.
    Folder,
}

impl Rootfs {
    /// Mounts our engine's layers. Shape: lowest first.
    ///
    /// # Errors
    /// [`MountError::Layers`].
    pub fn layers(layers: &[LayerFile], staging: &Path, places: &Places) -> Result<Self, MountError> {
        let sources: Vec<_> = layers.iter().map(|layer| LayerSource::File(layer.path.clone())).collect();
        let disk = places.disk.as_ref().map(mount_disk).transpose()?;
        let whole = container::rootfs::mount(&sources, staging, &places.changes, &places.merged);
        Ok(Self::Layers(whole.map_err(MountError::Layers)?, disk))
    }

    /// Mounts what a snapshotter wants, in order; without mounts the specification's folder stands.
    ///
    /// # Errors
    /// [`MountError::Foreign`]; what was mounted before is unmounted.
    pub fn foreign(mounts: &[Mount], target: &Path) -> Result<Self, MountError> {
        if mounts.is_empty() {
            return Ok(Self::Folder);
        }
        let mut done = ForeignMounts { targets: Vec::new() };
        for one in mounts {
            let target = join_within(target, &one.target);
            let mounted = std::fs::create_dir_all(&target).and_then(|()| mount_one(one, &target));
            mounted.map_err(|source| MountError::Foreign {
                kind: one.type_.clone(),
                source_path: one.source.clone(),
                target: target.clone(),
                source,
            })?;
            done.targets.push(target);
        }
        Ok(Self::Foreign(done))
    }

    /// Unmounts.
    ///
    /// # Errors
    /// [`MountError`]; what could not be unmounted vanishes with the shim's mount namespace.
    pub fn unmount(self) -> Result<(), MountError> {
        match self {
            Self::Layers(whole, disk) => {
                whole.unmount().map_err(MountError::Layers)?;
                disk.map_or(Ok(()), |disk| disk.unmount().map_err(MountError::Layers))
            }
            Self::Foreign(mut mounts) => mounts.unmount(),
            Self::Folder => Ok(()),
        }
    }
}

/// Where a container's root is put together.
pub struct Places {
    /// Its changes.
    pub changes: Upper,
    /// The whole.
    pub merged: PathBuf,
    /// What the changes are on, if they are bounded.
    pub disk: Option<UpperDisk>,
}

fn mount_disk(disk: &UpperDisk) -> Result<MountedRootfs, MountError> {
    std::fs::create_dir_all(&disk.point)
        .map_err(|source| MountError::Layers(RootfsError::Folder { path: disk.point.clone(), source }))?;
    container::rootfs::mount_disk(&disk.file, &disk.point).map_err(MountError::Layers)
}

/// A snapshotter's mounts; unmounted when dropped, last first.
pub struct ForeignMounts {
    targets: Vec<PathBuf>,
}

impl ForeignMounts {
    fn unmount(&mut self) -> Result<(), MountError> {
        while let Some(target) = self.targets.pop() {
            unmount(&target, UnmountFlags::DETACH)
                .map_err(|error| MountError::Unmount { target, source: error.into() })?;
        }
        Ok(())
    }
}

impl Drop for ForeignMounts {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "a mount stays until the shim ends");
        }
    }
}

/// The target is relative to the root; `..` would leave it.
fn join_within(root: &Path, target: &str) -> PathBuf {
    let inside = Path::new(target).components().filter_map(|part| match part {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    });
    let mut path = root.to_owned();
    path.extend(inside);
    path
}

/// A mount's options, split into what the kernel takes as flags and what the file system reads.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    bind: bool,
    recursive: bool,
    propagation: Option<MountPropagationFlags>,
    data: String,
}

fn parse(options: &[String]) -> Options {
    let mut parsed =
        Options { flags: MountFlags::empty(), bind: false, recursive: false, propagation: None, data: String::new() };
    for option in options {
        let flag = match option.as_str() {
            "ro" => MountFlags::RDONLY,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "strictatime" => MountFlags::STRICTATIME,
            "sync" => MountFlags::SYNCHRONOUS,
            "dirsync" => MountFlags::DIRSYNC,
            "rw" | "defaults" | "suid" | "dev" | "exec" | "atime" | "async" => MountFlags::empty(),
            "bind" | "rbind" => {
                parsed.bind = true;
                parsed.recursive |= option == "rbind";
                MountFlags::empty()
            }
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {
                parsed.propagation = Some(propagation(option));
                MountFlags::empty()
            }
            data => {
                if !parsed.data.is_empty() {
                    parsed.data.push(',');
                }
                parsed.data.push_str(data);
                MountFlags::empty()
            }
        };
        parsed.flags |= flag;
    }
    parsed
}

fn propagation(word: &str) -> MountPropagationFlags {
    let (recursive, word) = match word.strip_prefix('r') {
        Some(rest) => (MountPropagationFlags::REC, rest),
        None => (MountPropagationFlags::empty(), word),
    };
    recursive
        | match word {
            "shared" => MountPropagationFlags::SHARED,
            "slave" => MountPropagationFlags::DOWNSTREAM,
            _ => MountPropagationFlags::PRIVATE,
        }
}

fn mount_one(one: &Mount, target: &Path) -> io::Result<()> {
    let options = parse(&one.options);
    if options.bind || one.type_ == "bind" {
        if options.recursive {
            rustix::mount::mount_bind_recursive(&one.source, target)?;
        } else {
            rustix::mount::mount_bind(&one.source, target)?;
        }
        // A bind mount takes its flags only afterwards.
        if !options.flags.is_empty() {
            mount_remount(target, options.flags | MountFlags::BIND, c"")?;
        }
    } else {
        let data = CString::new(options.data)?;
        mount(&one.source, target, &one.type_, options.flags, data.as_c_str())?;
    }
    if let Some(propagation) = options.propagation {
        mount_change(target, propagation)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_snapshotters_overlay_is_understood() {
        let parsed = options(&["index=off", "ro", "lowerdir=/a:/b", "nosuid"]);
        assert_eq!(parsed.data, "index=off,lowerdir=/a:/b");
        assert_eq!(parsed.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert!(!parsed.bind);
    }

    #[test]
    fn a_snapshotters_bind_is_understood() {
        let parsed = options(&["rbind", "rw", "rslave"]);
        assert!(parsed.bind && parsed.recursive && parsed.data.is_empty());
        assert_eq!(parsed.propagation, Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC));
        assert!(!options(&["bind"]).recursive);
    }

    #[test]
    fn a_target_stays_within_the_root() {
        assert_eq!(join_within(Path::new("/b/rootfs"), ""), Path::new("/b/rootfs"));
        assert_eq!(join_within(Path::new("/b/rootfs"), "/../../etc"), Path::new("/b/rootfs/etc"));
    }
}
