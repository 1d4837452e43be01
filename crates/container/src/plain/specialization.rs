//! What a plain container has beyond what all plain containers have, and which containers are plain.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

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
    /// Mounted before the files.
    pub(crate) tmpfs: Vec<Tmpfs>,
    pub(crate) files: Vec<BoundFile>,
}

/// A further file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tmpfs {
    pub(crate) destination: PathBuf,
    /// Those that `Tmpfs::of` knows.
    pub(crate) options: Vec<String>,
}

impl Tmpfs {
    /// `None` for what is no tmpfs, has options that are not known, or is where something else of a plain container is made or looked up.
    fn of(mount: &Mount, cwd: &Path) -> Option<Self> {
        let destination = mount.destination();
        let plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
        let is_place =
            destination.is_absolute() && destination.components().all(plain) && destination.parent().is_some();
        let is_others = |place: &str| destination.starts_with(place) || Path::new(place).starts_with(destination);
        let options = mount.options().clone().unwrap_or_default();
        let is_known = |option: &String| {
            ["nosuid", "noexec", "nodev", "ro", "strictatime"].contains(&option.as_str())
                || ["mode=", "size=", "uid=", "gid="]
                    .iter()
                    .any(|name| option.starts_with(name) && !option.contains(','))
        };
        let fits = mount.typ().as_deref() == Some("tmpfs")
            && is_place
            && !["/proc", "/dev", "/sys", "/etc"].into_iter().any(is_others)
            && !cwd.starts_with(destination)
            && options.iter().all(is_known);
        fits.then(|| Self { destination: destination.clone(), options })
    }
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
        let (tmpfs, bound) = further_mounts(spec.mounts().as_deref().unwrap_or_default(), files, process.cwd())?;
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
            tmpfs,
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

/// The file systems in memory and the files that are bound, if all other mounts are just those of every plain container.
fn further_mounts(
    mounts: &[Mount],
    files: &BTreeMap<PathBuf, String>,
    cwd: &Path,
) -> Option<(Vec<Tmpfs>, Vec<BoundFile>)> {
    let mut expected: Vec<_> = MOUNTS.iter().collect();
    let mut bound: Vec<BoundFile> = Vec::new();
    let mut further: Vec<Tmpfs> = Vec::new();
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
        if let Some(at) = expected.iter().position(is_this) {
            expected.remove(at);
        } else {
            further.push(Tmpfs::of(mount, cwd)?);
        }
    }
    // Then their order does not matter.
    let places = further.iter().map(|tmpfs| &tmpfs.destination).chain(bound.iter().map(|file| &file.destination));
    let places: Vec<&PathBuf> = places.collect();
    let is_apart = |tmpfs: &Tmpfs| places.iter().filter(|place| place.starts_with(&tmpfs.destination)).count() == 1;
    let apart = further.iter().all(is_apart);
    (expected.is_empty() && apart).then_some((further, bound))
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
    fn file_systems_in_memory_are_plain_where_nothing_else_is() {
        let with = |mounts: Vec<Value>| {
            let mut spec = plain();
            spec["mounts"].as_array_mut().unwrap().extend(mounts);
            spec["process"]["cwd"] = json!("/work");
            of(spec).map(|(specialization, _)| specialization.tmpfs)
        };
        let tmpfs = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options});
        let usual = ["nosuid", "strictatime", "mode=755", "size=65536k"];
        let expected = Tmpfs { destination: "/run".into(), options: usual.map(str::to_owned).to_vec() };
        assert_eq!(with(vec![tmpfs("/run", &usual)]), Some(vec![expected]));
        assert!(with(vec![tmpfs("/run", &[]), tmpfs("/tmp", &[])]).is_some());
        for (destination, options) in [
            ("/etc", ""),
            ("/", ""),
            ("/dev/x", ""),
            ("/work", ""),
            ("/a/../proc", ""),
            ("/a", "tmpcopyup"),
            ("/a", "mode=1,x"),
        ] {
            let options: Vec<&str> = options.split_whitespace().collect();
            assert!(with(vec![tmpfs(destination, &options)]).is_none(), "{destination} {options:?}");
        }
        assert!(with(vec![tmpfs("/a", &[]), tmpfs("/a/b", &[])]).is_none(), "one in another");
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
        spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "ramfs", "source": "ramfs"}));
        assert!(of(spec).is_none(), "a further mount");
        let mut spec = plain();
        spec["mounts"].as_array_mut().unwrap().remove(0);
        assert!(of(spec).is_none(), "a mount is missing");
    }
}
