//! Containers that one shim serves: those of a pod, or of whatever else their specification calls a group.
//!
//! All of a group find their shim by the name of its socket, which is worked out from containerd's address, its namespace and the
//! group. Nothing of an image is looked at: CRI and containerd's clients write these annotations.
//!
//! Source: containerd runtime/v2/runc/manager, `groupLabels`; pkg/cri/annotations.

use std::fs::File;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::Spec;
use sha2::{Digest, Sha256};

use crate::bundle::Bundle;
use crate::flags::Flags;

/// Short, since a socket's path has 107 bytes and a bundle's path may need more.
pub const SOCKETS: &str = "/run/bulkhead/s";
/// The first one found counts, as for runc's shim.
const ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// A group of one containerd's containers.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    name: String,
}

impl Group {
    /// The group that a bundle's container is of. Shape: `None` for a container by itself, and for a bundle that cannot be read,
    /// which Create tells.
    #[must_use]
    pub fn of(bundle: &Bundle, flags: &Flags) -> Option<Self> {
        Self::of_spec(&bundle.spec().ok()?, flags)
    }

    /// As [`Group::of`], for the bundle's specification.
    #[must_use]
    pub fn of_spec(spec: &Spec, flags: &Flags) -> Option<Self> {
        let annotations = spec.annotations().as_ref()?;
        let group = ANNOTATIONS.iter().find_map(|name| annotations.get(*name)).filter(|group| !group.is_empty())?;
        let mut hash = Sha256::new();
        for text in [flags.address.as_deref().unwrap_or(""), flags.namespace.as_deref().unwrap_or(""), group] {
            hash.update(text);
            hash.update([0]);
        }
        // The same for a later version of this program: a pod outlives an upgrade.
        Some(Self { name: format!("group-{}", hex::encode(&hash.finalize()[..16])) })
    }

    /// Where its shim listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        Path::new(SOCKETS).join(&self.name)
    }
}

/// Holds up whoever else starts a shim of any group. Shape: until the file is closed.
///
/// # Errors
/// The folder of sockets cannot be locked.
pub fn lock() -> anyhow::Result<File> {
    let folder = File::open(SOCKETS).with_context(|| format!("cannot open {SOCKETS}"))?;
    folder.lock().with_context(|| format!("cannot lock {SOCKETS}"))?;
    Ok(folder)
}

/// True when a shim listens there.
#[must_use]
pub fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Removes the socket of a group's shim that ends.
pub fn forget(address: &SocketAddr) {
    let Some(path) = address.as_pathname() else { return };
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, "the shim's socket is left behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(annotations: &[(&str, &str)], namespace: &str) -> Option<Group> {
        let folder = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(folder.path().to_owned());
        let mut spec = Spec::default();
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        spec.set_annotations(Some(annotations.collect()));
        bundle.write_spec(&spec).unwrap();
        let address = Some("/run/containerd/containerd.sock".to_owned());
        Group::of(&bundle, &Flags { namespace: Some(namespace.to_owned()), address, ..Flags::default() })
    }

    #[test]
    fn a_pods_containers_have_one_shim_and_others_their_own() {
        let pod = group(&[("io.kubernetes.cri.sandbox-id", "p1")], "k8s.io").unwrap();
        let container = [("io.kubernetes.cri.sandbox-id", "p1"), ("io.kubernetes.cri.container-type", "container")];
        assert_eq!(group(&container, "k8s.io"), Some(Group { name: pod.name.clone() }));
        assert_ne!(group(&container, "other"), Some(Group { name: pod.name.clone() }));
        assert_ne!(group(&[("io.kubernetes.cri.sandbox-id", "p2")], "k8s.io"), Some(Group { name: pod.name.clone() }));
        assert_eq!(group(&[("io.kubernetes.cri.sandbox-id", "")], "k8s.io"), None);
        assert_eq!(group(&[("other", "p1")], "k8s.io"), None);
        assert_eq!(
            pod.name, "group-b41fcd2867e930c765185525b23fdc7b",
            "it must not change from one version to the next"
        );
        assert!(pod.socket().as_os_str().len() < 107);
    }
}
