//! What a plain container has beyond what all plain containers have, and which containers are plain.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxResources, Mount, Process, Spec};
use proto::{MASKED_PATHS, READ_ONLY_PATHS};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::layout::{MOUNTS, NAMESPACES};
use crate::cgroup::devices;
use crate::spec::{GROUPS_ANNOTATION, INIT_ANNOTATION, USER_ANNOTATION};

/// What a zygote is to become: all that tells one plain container from another, but its root and its limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Specialization {
    /// The first process. Shape: `user.username`, if set, is a user as typed, looked up in the container.
    pub(crate) process: Process,
    /// Further groups by name or number, separated by commas.
    pub(crate) groups: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Whether nothing of the root can be written to.
    pub(crate) read_only: bool,
    pub(crate) files: Vec<BoundFile>,
}

/// A small file that is mounted over one of the container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundFile {
    pub(crate) destination: PathBuf,
    pub(crate) text: String,
    pub(crate) read_only: bool,
    /// Only where the container has no such file, or an empty one.
    pub(crate) yields: bool,
}

impl Specialization {
    /// Mounts a small file, read-only, where the image has none of its own with something in it.
    pub fn provide(&mut self, destination: PathBuf, text: String) {
        self.files.push(BoundFile { destination, text, read_only: true, yields: true });
    }

    /// What makes this container of the plain one, and its limits; `None` if it is not plain, so that it must be made from
    /// its specification.
    ///
    /// Shape: `files` has the texts of files that the specification binds by these paths. The specification's seccomp
    /// profile, resources' devices apart from the plain ones, hooks, and whatever else this function does not know make a
    /// container not plain: it errs to that side.
    #[must_use]
    pub fn of(spec: &Spec, files: &BTreeMap<PathBuf, String>) -> Option<(Self, LinuxResources)> {
        let Value::Object(mut all) = serde_json::to_value(spec).ok()? else { return None };
        let annotation = |name: &str| spec.annotations().as_ref().and_then(|all| all.get(name)).cloned();
        if annotation(INIT_ANNOTATION).is_some() {
            return None;
        }
        let process = plain_process(spec, annotation(USER_ANNOTATION))?;
        let bound = bound_files(spec.mounts().as_deref().unwrap_or_default(), files)?;
        let resources = plain_linux(all.remove("linux")?)?;
        for known in ["ociVersion", "root", "mounts", "process", "hostname", "domainname", "annotations"] {
            all.remove(known);
        }
        let specialization = Self {
            process,
            groups: annotation(GROUPS_ANNOTATION),
            hostname: spec.hostname().clone(),
            domainname: spec.domainname().clone(),
            read_only: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
            files: bound,
        };
        is_blank(&all).then_some((specialization, resources))
    }
}

fn plain_process(spec: &Spec, user: Option<String>) -> Option<Process> {
    let mut process = spec.process().clone()?;
    // The guest's kernel has loaded none of the host's security policies.
    process.set_apparmor_profile(None).set_selinux_label(None);
    if let Some(user) = user {
        process.user_mut().set_username(Some(user));
    }
    let Value::Object(mut all) = serde_json::to_value(&process).ok()? else { return None };
    let known = [
        "terminal",
        "consoleSize",
        "user",
        "args",
        "env",
        "cwd",
        "capabilities",
        "rlimits",
        "noNewPrivileges",
        "oomScoreAdj",
    ];
    for known in known {
        all.remove(known);
    }
    is_blank(&all).then_some(process)
}

/// Takes a plain container's `linux` apart; what is left are its limits.
fn plain_linux(linux: Value) -> Option<LinuxResources> {
    let Value::Object(mut linux) = linux else { return None };
    let namespaces = linux.remove("namespaces")?;
    let namespaces: Option<BTreeSet<&str>> = namespaces
        .as_array()?
        .iter()
        // Any path would be another's namespace.
        .map(|namespace| namespace.get("type")?.as_str().filter(|_| namespace.get("path").is_none_or(Value::is_null)))
        .collect();
    let masked = texts(linux.remove("maskedPaths")?)?;
    let read_only = texts(linux.remove("readonlyPaths")?)?;
    let propagation = linux.remove("rootfsPropagation");
    let mut resources: LinuxResources = serde_json::from_value(linux.remove("resources")?).ok()?;
    linux.remove("cgroupsPath");
    let plain = namespaces? == NAMESPACES.into_iter().collect()
        && masked == MASKED_PATHS.iter().map(ToString::to_string).collect()
        && read_only == READ_ONLY_PATHS.iter().map(ToString::to_string).collect()
        && propagation.is_none_or(|propagation| propagation == "private" || propagation == "rprivate")
        && devices::are_plain(resources.devices().as_deref()?)
        && is_blank(&linux);
    resources.set_devices(None);
    plain.then_some(resources)
}

/// The files that are bound, if all other mounts are just those of every plain container.
fn bound_files(mounts: &[Mount], files: &BTreeMap<PathBuf, String>) -> Option<Vec<BoundFile>> {
    let mut expected: Vec<_> = MOUNTS.iter().collect();
    let mut bound = Vec::new();
    for mount in mounts {
        let options: BTreeSet<&str> = mount.options().iter().flatten().map(String::as_str).collect();
        if let Some(text) = mount.source().as_ref().and_then(|source| files.get(source)) {
            let known = ["bind", "rbind", "private", "rprivate", "ro", "rw"];
            if !options.iter().all(|option| known.contains(option)) {
                return None;
            }
            bound.push(BoundFile {
                destination: mount.destination().clone(),
                text: text.clone(),
                read_only: options.contains("ro"),
                yields: false,
            });
            continue;
        }
        let is_this = |plain: &&super::layout::PlainMount| {
            mount.destination().as_os_str() == plain.destination
                && mount.typ().as_deref() == Some(plain.kind)
                && options == plain.options.iter().copied().collect()
        };
        expected.remove(expected.iter().position(is_this)?);
    }
    expected.is_empty().then_some(bound)
}

fn texts(value: Value) -> Option<BTreeSet<String>> {
    serde_json::from_value(value).ok()
}

/// Whether nothing is said here: what is absent, null or empty has no meaning in a specification.
fn is_blank(rest: &Map<String, Value>) -> bool {
    rest.values().all(|value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => is_blank(map),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain() -> Value {
        let mounts: Vec<Value> = MOUNTS
            .iter()
            .map(|mount| {
                json!({"destination": mount.destination, "type": mount.kind, "source": mount.source,
                    "options": mount.options})
            })
            .collect();
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
            "mounts": mounts,
            "hostname": "h",
            "annotations": {USER_ANNOTATION: "app"},
            "linux": {
                "namespaces": NAMESPACES.map(|kind| json!({"type": kind})),
                "maskedPaths": MASKED_PATHS,
                "readonlyPaths": READ_ONLY_PATHS,
                "rootfsPropagation": "private",
                "cgroupsPath": "/any",
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 7}},
            },
        });
        let file =
            json!({"destination": "/etc/hosts", "type": "bind", "source": "/f/hosts", "options": ["rbind", "ro"]});
        spec["mounts"].as_array_mut().unwrap().push(file);
        spec
    }

    fn of(spec: Value) -> Option<(Specialization, LinuxResources)> {
        let files = BTreeMap::from([(PathBuf::from("/f/hosts"), "127.0.0.1 localhost".to_owned())]);
        Specialization::of(&serde_json::from_value(spec).unwrap(), &files)
    }

    #[test]
    fn a_plain_container_is_told_from_its_specification() {
        let (specialization, resources) = of(plain()).unwrap();
        assert_eq!(specialization.process.user().username().as_deref(), Some("app"));
        assert!(specialization.read_only);
        let file = BoundFile {
            destination: "/etc/hosts".into(),
            text: "127.0.0.1 localhost".into(),
            read_only: true,
            yields: false,
        };
        assert_eq!(specialization.files, [file]);
        assert_eq!(resources.pids().unwrap().limit(), 7);
        assert!(resources.devices().is_none());
        let text = serde_json::to_string(&specialization).unwrap();
        assert_eq!(serde_json::from_str::<Specialization>(&text).unwrap(), specialization);
    }

    #[test]
    fn what_is_not_plain_is_made_from_its_specification() {
        let changes = [
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
            ("/linux/maskedPaths", json!([])),
            ("/linux/readonlyPaths", json!(["/proc/bus"])),
            ("/linux/rootfsPropagation", json!("shared")),
            ("/linux/namespaces", json!([{"type": "mount"}])),
            ("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}])),
            ("/linux/personality", json!({"domain": "LINUX32"})),
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})),
            ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1000, "size": 1}])),
            ("/mounts/0/options", json!(["rw"])),
            ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 7})),
            ("/hooks", json!({"poststart": [{"path": "/bin/true"}]})),
        ];
        for (pointer, value) in changes {
            let mut spec = plain();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[name] = value;
            assert!(of(spec).is_none(), "{pointer}");
        }
        let mut spec = plain();
        spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs"}));
        assert!(of(spec).is_none(), "a further mount");
        let mut spec = plain();
        spec["mounts"].as_array_mut().unwrap().remove(0);
        assert!(of(spec).is_none(), "a mount is missing");
    }
}
