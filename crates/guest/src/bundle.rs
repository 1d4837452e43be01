//! The container's bundle inside the guest, which is no folder: the host's OCI spec with what the guest knows better put in
//! its place, and the small files that it mounts.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Process, Root, Spec};
use proto::ErrorKind;
use rustix::mount::{MountFlags, mount};

use crate::places::{FILES, Places};
use crate::shares::SHARES;

/// The annotation with their content: a JSON object of path and text.
const FILES_ANNOTATION: &str = "dev.bulkhead.files";
/// The memory that a pod's containers share, which they bind from here.
const SHARED_MEMORY: &str = "/run/bulkhead/shm";
/// As much as Docker and containerd give.
const SHARED_MEMORY_OPTIONS: &CStr = c"mode=1777,size=64m";
/// Names of settings, and beginnings of such, that belong to an IPC namespace. Source: runc libcontainer/configs/validate.
const IPC_SETTINGS: [&str; 4] = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."];

/// A spec that the guest cannot carry out.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is not JSON of this form.
    #[error("the {what} is no valid JSON")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be changed as needed.
    #[error("the spec cannot be used")]
    Spec(#[from] OciSpecError),
    /// A file would be written elsewhere.
    #[error("{path} is not below {FILES}")]
    OutsideFiles {
        /// The path from the annotation.
        path: String,
    },
    /// A mount needs a file of the host, which no utility VM can see.
    #[error("{source_path} cannot be mounted at {destination}: a utility VM has no files of the host")]
    HostMount {
        /// The mount's source.
        source_path: PathBuf,
        /// Where the container wants it.
        destination: PathBuf,
    },
    /// A setting of the network cannot be made.
    #[error("cannot set {name}")]
    Setting {
        /// Its name, as `sysctl` has it.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's memory file system took no file.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not let go of one.
    #[error("cannot empty {path}")]
    Clear {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BundleError {
    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed { .. } | Self::Spec(_) | Self::OutsideFiles { .. } | Self::Setting { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::HostMount { .. } => ErrorKind::NotImplemented,
            Self::Write { .. } | Self::Clear { .. } => ErrorKind::Internal,
        }
    }
}

/// Reads the spec for a container at these places, and writes the small files that its mounts bind.
///
/// # Errors
/// See [`BundleError`]; what was written stays, in memory that dies with the fork.
pub fn take(spec: &[u8], places: &Places) -> Result<Spec, BundleError> {
    let mut spec: Spec =
        serde_json::from_slice(spec).map_err(|source| BundleError::Malformed { what: "spec", source })?;
    for (path, text) in files(&spec)? {
        write_file(&path, text.as_bytes())?;
    }
    adapt(&mut spec, places)?;
    if spec.mounts().iter().flatten().any(is_shared_memory) {
        share_memory()?;
    }
    Ok(spec)
}

/// Has the memory that containers share ready.
fn share_memory() -> Result<(), BundleError> {
    let point = Path::new(SHARED_MEMORY);
    if point.exists() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounted =
        fs::create_dir(point).and_then(|()| Ok(mount("shm", point, "tmpfs", flags, Some(SHARED_MEMORY_OPTIONS))?));
    mounted.map_err(|source| BundleError::Write { path: point.to_path_buf(), source })
}

/// Removes what was written for containers that are gone.
///
/// # Errors
/// `Clear`.
pub fn clear() -> Result<(), BundleError> {
    empty(Path::new(FILES))
}

/// Reads the process of an exec.
///
/// # Errors
/// `Malformed`.
pub fn process(json: &[u8]) -> Result<Process, BundleError> {
    let mut process: Process =
        serde_json::from_slice(json).map_err(|source| BundleError::Malformed { what: "process", source })?;
    without_host_labels(&mut process);
    Ok(process)
}

fn files(spec: &Spec) -> Result<Vec<(PathBuf, String)>, BundleError> {
    let annotation = spec.annotations().as_ref().and_then(|annotations| annotations.get(FILES_ANNOTATION));
    let Some(json) = annotation else { return Ok(Vec::new()) };
    let files: HashMap<String, String> = serde_json::from_str(json)
        .map_err(|source| BundleError::Malformed { what: "annotation dev.bulkhead.files", source })?;
    files.into_iter().map(|(path, text)| Ok((below_files(path)?, text))).collect()
}

fn below_files(path: String) -> Result<PathBuf, BundleError> {
    let below = Path::new(&path).strip_prefix(FILES);
    let plain = below.is_ok_and(|name| {
        name.components().count() > 0 && name.components().all(|part| matches!(part, Component::Normal(_)))
    });
    if plain { Ok(path.into()) } else { Err(BundleError::OutsideFiles { path }) }
}

fn adapt(spec: &mut Spec, places: &Places) -> Result<(), BundleError> {
    let read_only = spec.root().as_ref().and_then(Root::readonly);
    let mut root = Root::default();
    root.set_path(places.merged.clone()).set_readonly(read_only);
    spec.set_root(Some(root));
    // Hooks are programs of the host.
    spec.set_hooks(None);
    if let Some(mount) = spec.mounts().iter().flatten().find(|mount| binds_host(mount)) {
        let source_path = mount.source().clone().unwrap_or_default();
        return Err(BundleError::HostMount { source_path, destination: mount.destination().clone() });
    }
    if let Some(process) = spec.process_mut().as_mut() {
        without_host_labels(process);
    }
    if let Some(linux) = spec.linux_mut().as_mut() {
        linux.set_cgroups_path(Some(places.cgroup.clone()));
        linux.set_mount_label(None);
        // The guest's own network namespace has nobody else in it, and a second one would take time.
        let kept =
            linux.namespaces().iter().flatten().filter(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        let kept = kept.cloned().collect();
        linux.set_namespaces(Some(kept));
        for (name, value) in take_settings(linux) {
            let path = setting_path(&name);
            fs::write(&path, value).map_err(|source| BundleError::Setting { name, source })?;
        }
    }
    Ok(())
}

/// Takes the settings that are the guest's own, since the container shares with it what they belong to: the network always, IPC
/// where the spec names no namespace for it.
fn take_settings(linux: &mut Linux) -> HashMap<String, String> {
    let Some(mut settings) = linux.sysctl().clone() else { return HashMap::new() };
    let own_ipc = linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Ipc);
    let is_guests =
        |name: &str| name.starts_with("net.") || (!own_ipc && IPC_SETTINGS.iter().any(|begin| name.starts_with(begin)));
    let taken = settings.extract_if(|name, _| is_guests(name)).collect();
    linux.set_sysctl(Some(settings));
    taken
}

/// A dot between parts is a folder; a slash in sysctl's names stands for a dot within one.
fn setting_path(name: &str) -> PathBuf {
    let path: String = name
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    Path::new("/proc/sys").join(path.replace("..", ""))
}

fn binds_host(mount: &Mount) -> bool {
    let bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    let own = mount.source().as_ref().is_some_and(|source| source.starts_with(FILES) || source.starts_with(SHARES));
    (bind || mount.typ().as_deref() == Some("bind")) && !own && !is_shared_memory(mount)
}

fn is_shared_memory(mount: &Mount) -> bool {
    mount.source().as_ref().is_some_and(|source| source == Path::new(SHARED_MEMORY))
}

/// The guest's kernel has loaded none of the host's security policies.
fn without_host_labels(process: &mut Process) {
    process.set_apparmor_profile(None).set_selinux_label(None);
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), BundleError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, content))
        .map_err(|source| BundleError::Write { path: path.to_path_buf(), source })
}

fn empty(folder: &Path) -> Result<(), BundleError> {
    fs::remove_dir_all(folder)
        .and_then(|()| fs::create_dir(folder))
        .map_err(|source| BundleError::Clear { path: folder.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, MountBuilder, SpecBuilder};

    use super::*;

    fn bind(source: &str) -> Mount {
        MountBuilder::default().destination("/etc/hosts").source(source).options(vec!["rbind".into()]).build().unwrap()
    }

    #[test]
    fn a_spec_is_adapted_to_the_guest() {
        let linux = LinuxBuilder::default().cgroups_path("/bulkhead/x").mount_label("label").build().unwrap();
        let had_network = linux.namespaces().iter().flatten().any(|space| space.typ() == LinuxNamespaceType::Network);
        assert!(had_network);
        let mounts = vec![bind("/run/bulkhead/files/hosts")];
        let mut spec = SpecBuilder::default().linux(linux).mounts(mounts).build().unwrap();
        spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
        adapt(&mut spec, &Places::of(7)).unwrap();
        let root = spec.root().as_ref().unwrap();
        assert_eq!((root.path().as_path(), root.readonly()), (Path::new("/run/bulkhead/7/rootfs"), Some(true)));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/pod/7")));
        assert_eq!(*linux.mount_label(), None);
        let spaces = linux.namespaces().as_ref().unwrap();
        assert!(!spaces.is_empty() && spaces.iter().all(|space| space.typ() != LinuxNamespaceType::Network));
    }

    #[test]
    fn a_mount_of_the_host_is_refused() {
        let mut spec = SpecBuilder::default().mounts(vec![bind("/srv/data")]).build().unwrap();
        let error = adapt(&mut spec, &Places::of(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotImplemented);
        assert!(error.to_string().contains("/srv/data"));
    }

    #[test]
    fn settings_of_what_is_shared_are_the_guests() {
        let settings = ["net.ipv4.ip_forward", "kernel.shm_rmid_forced", "fs.mqueue.msg_max", "kernel.domainname"];
        let taken = |spaces: &[LinuxNamespaceType]| {
            let namespace = |kind: &LinuxNamespaceType| LinuxNamespaceBuilder::default().typ(*kind).build().unwrap();
            let settings: HashMap<_, _> = settings.map(|name| (name.to_owned(), "1".to_owned())).into();
            let namespaces: Vec<_> = spaces.iter().map(namespace).collect();
            let mut linux = LinuxBuilder::default().namespaces(namespaces).sysctl(settings).build().unwrap();
            let taken = take_settings(&mut linux);
            assert_eq!(taken.len() + linux.sysctl().as_ref().unwrap().len(), 4);
            let mut names: Vec<String> = taken.into_keys().collect();
            names.sort();
            names
        };
        assert_eq!(taken(&[LinuxNamespaceType::Ipc]), ["net.ipv4.ip_forward"]);
        assert_eq!(taken(&[]), ["fs.mqueue.msg_max", "kernel.shm_rmid_forced", "net.ipv4.ip_forward"]);
    }

    #[test]
    fn the_shared_memory_is_the_guests_and_nothing_else_there_is() {
        assert!(!binds_host(&bind(SHARED_MEMORY)));
        assert!(binds_host(&bind("/run/bulkhead/shm/x")) && binds_host(&bind("/run/bulkhead/state")));
    }

    #[test]
    fn a_setting_is_a_path_below_proc_sys() {
        assert_eq!(setting_path("net.ipv4.ip_forward"), Path::new("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(setting_path("net.ipv4.conf.eth0/1.mtu"), Path::new("/proc/sys/net/ipv4/conf/eth0.1/mtu"));
        assert_eq!(setting_path("net.//.//.x"), Path::new("/proc/sys/net////x"));
    }

    #[test]
    fn a_folder_is_emptied_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        write_file(&folder.path().join("a/hosts"), b"127.0.0.1 localhost").unwrap();
        empty(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(matches!(empty(&folder.path().join("none")), Err(BundleError::Clear { .. })));
    }

    #[test]
    fn files_are_written_below_their_folder_only() {
        for path in
            ["/etc/passwd", "/run/bulkhead/files", "/run/bulkhead/files/../x", "hosts", "/run/bulkhead/filesx/y"]
        {
            assert!(below_files(path.to_owned()).is_err(), "{path}");
        }
        assert!(below_files("/run/bulkhead/files/hosts".to_owned()).is_ok());
        let annotations = HashMap::from([(FILES_ANNOTATION.to_owned(), r#"{"/etc/shadow": "x"}"#.to_owned())]);
        let spec = SpecBuilder::default().annotations(annotations).build().unwrap();
        assert!(matches!(files(&spec), Err(BundleError::OutsideFiles { .. })));
    }
}
