//! What the shim changes in a bundle's specification before somebody runs it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Root, Spec};
use proto::control::VolumePart;
use proto::vsock::VSOCK_ANNOTATION;
use proto::{ErrorKind, Status};

use crate::shares::Share;

/// The annotation by which small files travel into a utility VM: a JSON object from absolute path to text.
pub const FILES_ANNOTATION: &str = "dev.bulkhead.files";
/// Where the guest puts the files of [`FILES_ANNOTATION`].
pub const GUEST_FILES: &str = "/run/bulkhead/files";
/// The memory that a pod's containers share, in the guest.
pub const GUEST_SHARED_MEMORY: &str = "/run/bulkhead/shm";
/// What Docker and containerd bind into every container.
const NAME_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// A name file that is larger is not a name file.
const NAME_FILE_LIMIT: u64 = 64 * 1024;

/// A specification that cannot be run as it is.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A host folder that cannot be shared.
    #[error("cannot mount {destination}: {status}")]
    Share {
        /// In the container.
        destination: String,
        /// Why not.
        status: Status,
    },
    /// A name file of the host.
    #[error("cannot read {}", path.display())]
    NameFile {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// [`FILES_ANNOTATION`] holds something else.
    #[error("annotation {FILES_ANNOTATION} is malformed")]
    Annotation(#[source] serde_json::Error),
}

impl SpecError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Share { status, .. } => status.kind,
            Self::NameFile { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::NameFile { .. } => ErrorKind::Internal,
            Self::Annotation(_) => ErrorKind::InvalidArgument,
        }
    }
}

/// Lets the specification's root be `path`. Answers true when that changed something.
pub fn set_root(spec: &mut Spec, path: &Path) -> bool {
    if spec.root().as_ref().is_some_and(|root| root.path() == path) {
        return false;
    }
    let mut root = spec.root().clone().unwrap_or_else(|| {
        let mut root = Root::default();
        root.set_readonly(Some(false));
        root
    });
    root.set_path(path.to_owned());
    spec.set_root(Some(root));
    true
}

/// What tells a container's things from those of others in its utility VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNames {
    /// The folder of its files, which the guest removes with it.
    pub files: PathBuf,
    /// The number of its first share.
    pub first_share: u32,
}

impl GuestNames {
    /// Those of a VM's one container.
    #[must_use]
    pub fn alone() -> Self {
        Self { files: GUEST_FILES.into(), first_share: 0 }
    }

    /// Those of a pod's container with this number.
    #[must_use]
    pub fn member(container: u32, first_share: u32) -> Self {
        Self { files: Path::new(GUEST_FILES).join(container.to_string()), first_share }
    }
}

/// Rewrites a specification for a utility VM: what it takes from the host by path goes into [`FILES_ANNOTATION`] or is
/// shared, and namespaces of the host are not joined. Shape: what is shared, by number from the names' first on.
///
/// # Errors
/// [`SpecError`].
pub fn for_guest(spec: &mut Spec, parts: &[VolumePart], names: &GuestNames) -> Result<Vec<Share>, SpecError> {
    let (mut shares, mut numbers) = (Vec::new(), names.first_share..);
    let annotations: HashMap<String, String> = spec.annotations().clone().unwrap_or_default();
    let mut files = files(spec)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if is_host_bind(mount) && !deliver(mount, &names.files, &mut files)? {
            let destination = mount.destination().display().to_string();
            let share = Share::take(mount, parts, numbers.next().unwrap_or(u32::MAX));
            shares.push(share.map_err(|status| SpecError::Share { destination, status })?);
        }
    }
    spec.set_mounts(Some(mounts));
    if !files.is_empty() {
        let mut annotations = annotations;
        // A map of strings has a JSON form.
        annotations.insert(FILES_ANNOTATION.to_owned(), serde_json::to_string(&files).unwrap_or_default());
        spec.set_annotations(Some(annotations));
    }
    if let Some(mut linux) = spec.linux().clone() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        for namespace in &mut namespaces {
            namespace.set_path(None);
        }
        linux.set_namespaces(Some(namespaces));
        spec.set_linux(Some(linux));
    }
    Ok(shares)
}

/// The network namespace that is to be joined, if there is one.
#[must_use]
pub fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?.path().clone()
}

/// The small files that travel into the utility VM: path in the guest, and text.
///
/// # Errors
/// [`SpecError::Annotation`].
pub fn files(spec: &Spec) -> Result<BTreeMap<PathBuf, String>, SpecError> {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(FILES_ANNOTATION));
    annotation.map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(text).map_err(SpecError::Annotation))
}

/// True if its annotation asks for a vsock.
///
/// # Errors
/// `InvalidArgument` when the annotation says something else.
pub fn asks_for_vsock(spec: &Spec) -> Result<bool, Status> {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(VSOCK_ANNOTATION));
    let asked = proto::vsock::asks_for_vsock(annotation.map(String::as_str));
    asked.map_err(|what| Status::new(ErrorKind::InvalidArgument, what))
}

/// Refuses a specification that asks for a vsock, to be run with isolation process.
///
/// # Errors
/// `InvalidArgument`.
pub fn without_vsock(spec: &Spec) -> Result<(), Status> {
    if !asks_for_vsock(spec)? {
        return Ok(());
    }
    let what = format!(
        "annotation {VSOCK_ANNOTATION} needs isolation hyperv: to a process container a UNIX socket of the host can be mounted"
    );
    Err(Status::new(ErrorKind::InvalidArgument, what))
}

fn is_host_bind(mount: &Mount) -> bool {
    let by_option = || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    let is_bind = mount.typ().as_deref() == Some("bind") || by_option();
    let guests = |source: &PathBuf| source.starts_with(GUEST_FILES) || source == Path::new(GUEST_SHARED_MEMORY);
    is_bind && !mount.source().as_ref().is_some_and(guests)
}

/// Sends a name file by its content. False for everything else.
fn deliver(mount: &mut Mount, folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<bool, SpecError> {
    let destination = mount.destination().to_string_lossy().into_owned();
    let source = mount.source().clone().unwrap_or_default();
    if !NAME_FILES.contains(&destination.as_str()) {
        return Ok(false);
    }
    let content = read_bounded(&source).map_err(|error| SpecError::NameFile { path: source, source: error })?;
    let name = destination.trim_start_matches("/etc/");
    let path = folder.join(name);
    mount.set_source(Some(path.clone()));
    files.insert(path, content);
    Ok(true)
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(NAME_FILE_LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn bind(source: &Path, destination: &str) -> Mount {
        MountBuilder::default()
            .source(source)
            .destination(destination)
            .typ("bind")
            .options(vec!["rbind".to_owned(), "ro".to_owned()])
            .build()
            .unwrap()
    }

    #[test]
    fn name_files_travel_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![bind(&hosts, "/etc/hosts"), bind(Path::new("/run/bulkhead/files/x"), "/etc/x")]));
        assert!(for_guest(&mut spec, &[], &GuestNames::alone()).unwrap().is_empty());
        let files: BTreeMap<String, String> =
            serde_json::from_str(&spec.annotations().as_ref().unwrap()[FILES_ANNOTATION]).unwrap();
        assert_eq!(files["/run/bulkhead/files/hosts"], "127.0.0.1 localhost\n");
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/run/bulkhead/files/hosts")));
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/run/bulkhead/files/x")));
    }

    #[test]
    fn other_binds_are_shared_or_refused_and_not_dropped() {
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![bind(Path::new("/usr"), "/data"), bind(Path::new("/dev/null"), "/null")]));
        let error = for_guest(&mut spec, &[], &GuestNames::alone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotImplemented);
        assert!(error.to_string().contains("/null"));
        spec.set_mounts(Some(vec![bind(Path::new("/usr"), "/data")]));
        let shares = for_guest(&mut spec, &[], &GuestNames::alone()).unwrap();
        assert_eq!(shares[0].source, Path::new("/usr"));
        assert!(shares[0].read_only);
    }

    #[test]
    fn the_hosts_namespaces_are_not_joined() {
        let mut spec = Spec::default();
        let mut linux = spec.linux().clone().unwrap();
        let mut namespaces = linux.namespaces().clone().unwrap();
        for namespace in namespaces.iter_mut().filter(|ns| ns.typ() == LinuxNamespaceType::Network) {
            namespace.set_path(Some("/run/netns/x".into()));
        }
        assert!(!namespaces.is_empty());
        linux.set_namespaces(Some(namespaces));
        spec.set_linux(Some(linux));
        assert_eq!(network_namespace(&spec), Some("/run/netns/x".into()));
        for_guest(&mut spec, &[], &GuestNames::alone()).unwrap();
        assert_eq!(network_namespace(&spec), None);
        let linux = spec.linux().clone().unwrap();
        assert!(linux.namespaces().iter().flatten().all(|ns| ns.path().is_none()));
    }

    #[test]
    fn a_vsock_is_asked_for_by_annotation_and_not_with_isolation_process() {
        let asking = |value: &str| {
            let mut spec = Spec::default();
            spec.set_annotations(Some([(VSOCK_ANNOTATION.to_owned(), value.to_owned())].into()));
            spec
        };
        assert!(!asks_for_vsock(&Spec::default()).unwrap());
        assert!(asks_for_vsock(&asking("true")).unwrap());
        without_vsock(&asking("false")).unwrap();
        let refused = without_vsock(&asking("true")).unwrap_err();
        assert!(
            refused.kind == ErrorKind::InvalidArgument && refused.message.contains("isolation hyperv"),
            "{refused:?}"
        );
        assert!(without_vsock(&asking("/run/x.sock")).is_err());
    }

    #[test]
    fn the_root_is_replaced_and_its_readonly_kept() {
        let mut spec = Spec::default();
        let mut root = Root::default();
        root.set_readonly(Some(true));
        spec.set_root(Some(root));
        assert!(set_root(&mut spec, Path::new("/merged")));
        assert!(!set_root(&mut spec, Path::new("/merged")));
        let root = spec.root().clone().unwrap();
        assert_eq!((root.path().as_path(), root.readonly()), (Path::new("/merged"), Some(true)));
    }
}
