//! A hyperv container of a foreign containerd: what our engine's bundle says of one of its own, worked out from containerd's.
//!
//! ```text
//!   snapshotter's mounts ─ roots ─▶ folders ─ layers ─▶ EROFS files ┐
//!   runtime's name, TOML file ─ options ─▶ templates, backend ──────┼─▶ bulkhead.json, as the engine writes it
//!   config.json ─▶ limits, cgroup ──────────────────────────────────┘
//! ```
//!
//! Why so: docs/design/0019-containerd.md.

mod layers;
mod likeness;
mod options;
mod pod;
mod rehearsal;
mod roots;
mod unnamed;

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use image::Scratch;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use proto::control::{ContainerBundle, LayerFile, UtilityVmRequest, Writable};
use proto::{ErrorKind, Isolation, Status};

use crate::bundle::Bundle;
use crate::unique::unique_name;
use layers::{CacheError, LayerCache};
use roots::RootPart;
use unnamed::Unnamed;

pub use options::{Options, StandbyKind, isolation_by_name};
pub use pod::Part;
pub use rehearsal::{likely_vm, rehearsal};

/// Below the state folder: converted layers and blank disks.
const STATE: &str = "containerd";
/// Below that.
const CACHED_LAYERS: &str = "layers";
const BLANK_DISKS: &str = "blank";

/// What containerd says of a container beside its bundle.
pub struct Foreign<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container.
    pub id: &'a str,
    /// How its root is put together.
    pub mounts: &'a [Mount],
    /// How it is to be run.
    pub options: &'a Options,
}

/// A container that is ready for its VM.
pub struct Prepared {
    /// What it is of a pod.
    pub part: Part,
    /// As our engine would have described it.
    pub container: ContainerBundle,
    /// Its disk, and layers of its own, which `container` names: to be held until the VM has them.
    pub files: Vec<Unnamed>,
}

/// Makes the bundle one of our engine's: converts its layers, makes its disk, and writes down what they are. A pod's sandbox has
/// neither layers nor disk.
///
/// When: blocks; a new image takes as long as its conversion. What is made lies in the layer cache, or has no name.
///
/// # Errors
/// `NotImplemented` for what a utility VM cannot have; `InvalidArgument` for a bundle that is none; what the conversion says.
pub fn prepare(bundle: &Bundle, foreign: &Foreign<'_>) -> Result<Prepared, Status> {
    let of_bundle = |error: crate::bundle::BundleError| Status::from_error(error.kind(), &error);
    let Foreign { namespace, id, options, .. } = *foreign;
    let mut spec = bundle.spec().map_err(of_bundle)?;
    let part = Part::of(&spec)?;
    match part {
        Part::Alone | Part::Sandbox => refuse_what_cannot_be(&spec)?,
        Part::Member => pod::adapt_member(&mut spec)?,
    }
    let cgroup = cgroup(&spec, namespace, id);
    adapt(&mut spec, &cgroup, part);
    if part == Part::Alone {
        likeness::make_plain(&mut spec).map_err(|error| Status::from_error(ErrorKind::InvalidArgument, &error))?;
    }
    let mut vm = utility_vm(&spec, options, namespace, bundle.path());
    let mut files = Vec::new();
    let (layers, disk) = match part {
        Part::Alone | Part::Member => root(bundle, &spec, foreign, &mut files)?,
        Part::Sandbox => {
            pod::size(&mut vm, &spec, options);
            (Vec::new(), PathBuf::new())
        }
    };
    bundle.write_spec(&spec).map_err(of_bundle)?;
    let container = ContainerBundle {
        isolation: Isolation::Hyperv,
        layers,
        writable: Writable::Scratch { disk },
        cgroup,
        utility_vm: Some(vm),
        parts: Vec::new(),
        network: None,
    };
    bundle.write_container(&container).map_err(of_bundle)?;
    Ok(Prepared { part, container, files })
}

/// The container's layers, and its blank disk.
fn root(
    bundle: &Bundle,
    spec: &Spec,
    foreign: &Foreign<'_>,
    files: &mut Vec<Unnamed>,
) -> Result<(Vec<LayerFile>, PathBuf), Status> {
    let of_cache = |error: CacheError| Status::from_error(error.kind(), &error);
    let Foreign { mounts, options, .. } = *foreign;
    let root = spec.root().as_ref().map_or_else(|| "rootfs".into(), |root| root.path().clone());
    let parts = roots::parts(mounts, &bundle.path().join(root))?;
    let layers = convert(&parts, &options.state.join(STATE), files).map_err(of_cache)?;
    let blank = blank_folder(options).map_err(of_cache)?;
    let disk = Unnamed::new(&blank).map_err(layers::at("make a disk in", &blank)).map_err(of_cache)?;
    Scratch::fill(&blank, disk.file(), options.scratch_bytes())
        .map_err(|error| Status::from_error(error.kind(), &error))?;
    let path = disk.path();
    files.push(disk);
    Ok((layers, path))
}

/// Where blank disks are, and made.
fn blank_folder(options: &Options) -> Result<PathBuf, CacheError> {
    let blank = options.state.join(STATE).join(BLANK_DISKS);
    layers::make_folder(&blank)?;
    Ok(blank)
}

/// A utility VM that stands by can be this container's: it asks for no size, and for nothing that will be refused.
#[must_use]
pub fn suits_standby(spec: &Spec) -> bool {
    size(spec) == (None, None)
        && Part::of(spec).is_ok_and(|part| part == Part::Alone)
        && refuse_what_cannot_be(spec).is_ok()
}

/// Never a silent downgrade: what shares the host's is refused.
fn refuse_what_cannot_be(spec: &Spec) -> Result<(), Status> {
    let refuse = |what: String| Err(Status::new(ErrorKind::NotImplemented, what));
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for (kind, name) in
        [(LinuxNamespaceType::Network, "network"), (LinuxNamespaceType::Pid, "pid"), (LinuxNamespaceType::Ipc, "ipc")]
    {
        let found = namespaces.into_iter().flatten().find(|namespace| namespace.typ() == kind);
        let joins = found.is_some_and(|namespace| namespace.path().is_some());
        if found.is_none() || (joins && kind != LinuxNamespaceType::Network) {
            return refuse(format!("the {name} namespace of somebody else cannot be used with isolation hyperv"));
        }
    }
    Ok(())
}

/// The cgroup on the host. Shape: containerd's, if it is a path; systemd's names are not ours to make.
fn cgroup(spec: &Spec, namespace: &str, id: &str) -> String {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let is_own = |path: &PathBuf| path.is_absolute() && path.components().count() > 1;
    let given = given.filter(is_own).and_then(|path| path.to_str().map(str::to_owned));
    given.unwrap_or_else(|| format!("/bulkhead/{}/{id}", namespace.replace('/', "_")))
}

/// What the specification leaves to the host.
fn adapt(spec: &mut Spec, cgroup: &str, part: Part) {
    if spec.hostname().is_none() && part != Part::Member {
        // A new namespace on the host begins with the host's name.
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        spec.set_hostname(Some(name.trim_end().to_owned()));
    }
    if let Some(mut linux) = spec.linux().clone() {
        linux.set_cgroups_path(Some(cgroup.into()));
        spec.set_linux(Some(linux));
    }
}

fn convert(parts: &[RootPart], state: &Path, files: &mut Vec<Unnamed>) -> Result<Vec<LayerFile>, CacheError> {
    let folder = state.join(CACHED_LAYERS);
    let cache = LayerCache::open(folder.clone())?;
    let last = parts.len() - 1;
    let mut layers = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        match part {
            RootPart::Committed(folder) => layers.push(cache.layer(folder)?),
            // Of a container that never ran it is empty.
            RootPart::Own(folder) if at == last && at > 0 && is_empty(folder) => {}
            RootPart::Own(own) => {
                let file = Unnamed::new(&folder).map_err(layers::at("make a layer in", &folder))?;
                layers.push(layers::own_layer(own, &file)?);
                files.push(file);
            }
        }
    }
    Ok(layers)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// What a specification limits: memory in bytes, thousandths of a processor.
fn size(spec: &Spec) -> (Option<u64>, Option<u64>) {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    let quota = resources.cpu().as_ref().and_then(|cpu| {
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(100_000);
        let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
        Some((quota.saturating_mul(1000) / period).max(1))
    });
    (memory.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0), quota)
}

fn utility_vm(spec: &Spec, options: &Options, namespace: &str, bundle: &Path) -> UtilityVmRequest {
    let (memory_bytes, cpus_milli) = size(spec);
    UtilityVmRequest {
        template_store: options.template_store(namespace, bundle),
        guest_image: options.guest_image.clone().unwrap_or_else(guest_image),
        backend: options.backend,
        memory_bytes,
        cpus_milli,
        boundary_required: options.require_boundary,
        machine_id: unique_name(),
        personalize_timeout_ms: options.personalize_timeout_ms,
        disk_rates: proto::control::DiskRates::default(),
    }
}

/// Beside the program, as the engine's: `../lib/bulkhead` when it is installed, `../boot` when it was only built.
fn guest_image() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = [folder.join("../lib/bulkhead"), folder.join("../boot")];
    let found = places.iter().find(|place| place.join("manifest.json").exists()).unwrap_or(&places[0]);
    found.canonicalize().unwrap_or_else(|_| found.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_vms_size() {
        let mut spec = Spec::default();
        let mut linux = spec.linux().clone().unwrap();
        let text = r#"{"memory":{"limit":268435456},"cpu":{"quota":150000,"period":100000}}"#;
        linux.set_resources(Some(serde_json::from_str(text).unwrap()));
        spec.set_linux(Some(linux));
        let vm = utility_vm(&spec, &Options::default(), "default", Path::new("/b"));
        assert_eq!((vm.memory_bytes, vm.cpus_milli), (Some(256 << 20), Some(1500)));
        assert_eq!(vm.template_store, Path::new("/var/lib/bulkhead/templates"));
        let vm = utility_vm(&Spec::default(), &Options::default(), "default", Path::new("/b"));
        assert_eq!((vm.memory_bytes, vm.cpus_milli), (None, None));
    }

    #[test]
    fn what_is_shared_with_others_is_refused() {
        let namespaces = |text: &str| {
            let mut spec = Spec::default();
            let mut linux = spec.linux().clone().unwrap();
            linux.set_namespaces(Some(serde_json::from_str(text).unwrap()));
            spec.set_linux(Some(linux));
            refuse_what_cannot_be(&spec)
        };
        namespaces(r#"[{"type":"pid"},{"type":"ipc"},{"type":"network","path":"/run/netns/x"}]"#).unwrap();
        for text in [
            r#"[{"type":"pid"},{"type":"ipc"}]"#,
            r#"[{"type":"ipc"},{"type":"network"}]"#,
            r#"[{"type":"pid","path":"/proc/1/ns/pid"},{"type":"ipc"},{"type":"network"}]"#,
        ] {
            assert_eq!(namespaces(text).unwrap_err().kind, ErrorKind::NotImplemented, "{text}");
        }
    }

    #[test]
    fn a_cgroup_is_containerds_or_our_own() {
        let with = |path: Option<&str>| {
            let mut spec = Spec::default();
            let mut linux = spec.linux().clone().unwrap();
            linux.set_cgroups_path(path.map(Into::into));
            spec.set_linux(Some(linux));
            cgroup(&spec, "k8s.io", "c1")
        };
        assert_eq!(with(Some("/default/c1")), "/default/c1");
        assert_eq!(
            (with(Some("system.slice:x:c1")).as_str(), with(Some("/")).as_str()),
            ("/bulkhead/k8s.io/c1", "/bulkhead/k8s.io/c1")
        );
    }
}
