//! Turns what Docker's API says about a container into an OCI runtime spec.
//!
//! Nothing is weaker than Docker's defaults unless it was asked for: fourteen capabilities, the default system call
//! filter, masked and read-only paths, devices by allow list, every namespace the container's own. The spec is the same for
//! both isolations but for what belongs to the host: binds, devices and host namespaces exist for process containers only.

mod capabilities;
mod devices;
mod disk_rates;
mod merge;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod security;
mod syscalls;
mod sysctl;
mod tmpfs;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerConfig, HostConfig};
use oci_spec::runtime::{Linux, Mount, Root, Spec};
use proto::vsock::{self, VSOCK_ANNOTATION};
use proto::{ErrorKind, Isolation};

use crate::container::mount_point::MountPoint;

pub use disk_rates::disk_rates;
pub use merge::merge_image;
pub use mounts::{NETWORK_FILES, subpath_point};
pub use process::{build_exec_process, rlimit as check_limit};
pub use resources::MIN_MEMORY_BYTES;
pub use tmpfs::merge as tmpfs_options;

use security::SecurityOptions;

/// Version of the runtime specification that the specs follow.
const OCI_VERSION: &str = "1.0.2";
/// Annotation: the user as typed, to be resolved inside the mounted image.
pub const USER_ANNOTATION: &str = "dev.bulkhead.user";
/// Annotation: names of `--group-add`, comma-separated, to be resolved inside the mounted image.
pub const GROUPS_ANNOTATION: &str = "dev.bulkhead.groups";
/// Annotation: a first process that passes signals on and reaps goes in front of the command.
pub const INIT_ANNOTATION: &str = "dev.bulkhead.init";
/// Annotation, hyperv only: JSON object of path in the guest to content, written before the container is made.
pub const FILES_ANNOTATION: &str = "dev.bulkhead.files";
/// Bytes: the longest host name. Source: Linux `__NEW_UTS_LEN`.
const MAX_HOSTNAME_BYTES: usize = 64;

/// Whose network a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkNamespace<'a> {
    /// Its own, made with it, in which there is a loopback device.
    Own,
    /// The host's.
    Host,
    /// One that is there.
    At(&'a Path),
}

/// Everything the spec of a container is made from.
#[derive(Debug, Clone, Copy)]
pub struct SpecInput<'a> {
    /// Its wall.
    pub isolation: Isolation,
    /// Its configuration, with the image's merged into it ([`merge_image`]).
    pub config: &'a ContainerConfig,
    /// Its relation to the host.
    pub host_config: &'a HostConfig,
    /// What is mounted beside the root, as it was decided when the container was made.
    pub mounts: &'a [MountPoint],
    /// Where the root will be mounted; a utility VM has its own place.
    pub rootfs: &'a Path,
    /// Its network; a utility VM has its own.
    pub network: NetworkNamespace<'a>,
    /// Folder with the files that tell a container its names: `hostname`, `hosts`, `resolv.conf`. They are read for a
    /// hyperv container and bound for a process container; one that does not exist yet counts as empty.
    pub files: &'a Path,
    /// The container's host name, not used with the host's UTS namespace.
    pub hostname: &'a str,
    /// The cgroup, such as `/bulkhead/<id>`.
    pub cgroup: &'a str,
    /// With a terminal.
    pub terminal: bool,
}

/// Why a configuration is no container. The texts are Docker's where Docker has one.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A word of `--cap-add` or `--cap-drop`.
    #[error("invalid {list}: unknown capability: \"{name}\"")]
    UnknownCapability {
        /// `CapAdd` or `CapDrop`.
        list: &'static str,
        /// The word in full.
        name: String,
    },
    /// A setting that no namespace holds.
    #[error("sysctl \"{name}\" {why}")]
    Sysctl {
        /// The setting.
        name: String,
        /// Why not.
        why: String,
    },
    /// A limit out of its range, or two that contradict each other.
    #[error("{0}")]
    Limit(String),
    /// Something about the process: command, folder, environment, names.
    #[error("{0}")]
    Process(String),
    /// A mount that cannot be.
    #[error("{0}")]
    Mount(String),
    /// A namespace mode that is unknown or contradicts another setting.
    #[error("{0}")]
    Namespace(String),
    /// A security option, device permission or filter that is not understood.
    #[error("{0}")]
    Security(String),
    /// Known, and not there yet.
    #[error("{0}")]
    NotAvailable(String),
    /// `--gpus`, and what else only a driver can give.
    #[error("could not select device driver {driver:?} with capabilities: [{capabilities}]")]
    DeviceDriver {
        /// Its name; empty for any.
        driver: String,
        /// As dockerd writes them: `[gpu]`.
        capabilities: String,
    },
    /// A device that cannot be given.
    #[error("error gathering device information while adding custom device {path:?}")]
    CustomDevice {
        /// As it was asked for.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A device or a file of the host that cannot be used.
    #[error("cannot use {}", path.display())]
    Device {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl SpecError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAvailable(_) => ErrorKind::NotImplemented,
            Self::DeviceDriver { .. } => ErrorKind::Internal,
            Self::UnknownCapability { .. }
            | Self::Sysctl { .. }
            | Self::Limit(_)
            | Self::Process(_)
            | Self::Mount(_)
            | Self::Namespace(_)
            | Self::Security(_)
            | Self::CustomDevice { .. }
            | Self::Device { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// Builds the OCI runtime spec of a container. May be called again with the same input: at create to find out whether
/// the configuration can be, at start for the bundle.
///
/// # Errors
/// See [`SpecError`]; nothing is guessed and nothing asked for is left out silently.
pub fn build(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    let (config, host) = (input.config, input.host_config);
    let privileged = host.privileged.unwrap_or_default();
    let options = SecurityOptions::parse(host.security_opt.as_deref().unwrap_or_default())?;
    if options.boundary_required && input.isolation == Isolation::Process {
        return Err(SpecError::Security(
            "--security-opt boundary=required needs --isolation=hyperv: a process container shares the host's kernel"
                .into(),
        ));
    }
    let granted = capabilities::decide(
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        privileged,
        input.isolation,
    )?;
    let mut process = process::init(input)?;
    process::confine(&mut process, &granted, options.no_new_privileges, resources::oom_score_adj(host)?);
    let shared = namespaces::decide(config, host, input.isolation)?;
    let mounts = mounts::decide(input, shared)?;
    let mut linux = linux(input, shared, &mounts)?;
    let vsock = asks_for_vsock(host, input.isolation)?;
    linux.set_seccomp(seccomp::decide(&options.filter, &granted, privileged, vsock)?);

    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned()).set_readonly(Some(host.readonly_rootfs.unwrap_or_default()));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(None)
        .set_domainname(None)
        .set_annotations(Some(annotations(input)?))
        .set_linux(Some(linux));
    if !shared.uts {
        spec.set_hostname(Some(host_name(input.hostname)?));
        let domain = config.domainname.as_deref().filter(|name| !name.is_empty());
        spec.set_domainname(domain.map(host_name).transpose()?);
    }
    Ok(spec)
}

/// True if `--security-opt boundary=required` was given. Options that are not understood do not count: [`build`] has
/// refused them.
#[must_use]
pub fn boundary_required(host: &HostConfig) -> bool {
    SecurityOptions::parse(host.security_opt.as_deref().unwrap_or_default())
        .is_ok_and(|options| options.boundary_required)
}

fn linux(input: &SpecInput<'_>, shared: namespaces::Shared, mounts: &[Mount]) -> Result<Linux, SpecError> {
    let host = input.host_config;
    if input.isolation == Isolation::Hyperv {
        disk_rates(host, input.files)?;
    }
    let privileged = host.privileged.unwrap_or_default();
    let devices = devices::decide(host, input.isolation)?;
    let own = sysctl::OwnNamespaces { ipc: !shared.ipc, network: input.network != NetworkNamespace::Host };
    let settings = host.sysctls.as_ref().filter(|settings| !settings.is_empty());
    let settings = settings.map(|settings| sysctl::check(settings, own)).transpose()?;
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources::build(host, input.isolation, devices.rules)?))
        .set_devices((!devices.nodes.is_empty()).then_some(devices.nodes))
        .set_cgroups_path(Some(PathBuf::from(input.cgroup)))
        .set_namespaces(Some(shared.list(input.network)))
        .set_sysctl(settings)
        .set_rootfs_propagation(Some(mounts::propagation(mounts).into()))
        .set_masked_paths(Some(security::masked_paths(host.masked_paths.as_ref(), privileged, input.isolation)))
        .set_readonly_paths(Some(security::read_only_paths(host.readonly_paths.as_ref(), privileged)));
    Ok(linux)
}

/// True if it is to have a vsock.
///
/// # Errors
/// [`SpecError::Security`] when the annotation says something else, or the isolation has none.
pub fn asks_for_vsock(host: &HostConfig, isolation: Isolation) -> Result<bool, SpecError> {
    let annotation = host.annotations.as_ref().and_then(|all| all.get(VSOCK_ANNOTATION));
    let asked = vsock::asks_for_vsock(annotation.map(String::as_str)).map_err(SpecError::Security)?;
    if asked && isolation == Isolation::Process {
        return Err(SpecError::Security(format!(
            "annotation {VSOCK_ANNOTATION} needs --isolation=hyperv: to a process container a UNIX socket of the host can be mounted (-v)"
        )));
    }
    Ok(asked)
}

/// The user's annotations and our own; nobody sets ours from outside, but that which asks for a vsock.
fn annotations(input: &SpecInput<'_>) -> Result<HashMap<String, String>, SpecError> {
    let mut annotations = input.host_config.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !name.starts_with("dev.bulkhead.") || name == VSOCK_ANNOTATION);
    let user = input.config.user.as_deref().filter(|user| !user.is_empty()).unwrap_or("0");
    annotations.insert(USER_ANNOTATION.to_owned(), user.to_owned());
    let named = |group: &&String| group.parse::<u32>().is_err();
    let groups: Vec<&str> = input.host_config.group_add.iter().flatten().filter(named).map(String::as_str).collect();
    if !groups.is_empty() {
        annotations.insert(GROUPS_ANNOTATION.to_owned(), groups.join(","));
    }
    let own_processes = input.host_config.pid_mode.as_deref().unwrap_or_default().is_empty();
    if input.host_config.init == Some(true) && own_processes {
        annotations.insert(INIT_ANNOTATION.to_owned(), String::new());
    }
    if input.isolation == Isolation::Hyperv {
        let mut contents = serde_json::Map::new();
        for name in NETWORK_FILES {
            contents.insert(format!("{}/{name}", mounts::GUEST_FILES), read_or_empty(&input.files.join(name))?.into());
        }
        annotations.insert(FILES_ANNOTATION.to_owned(), serde_json::Value::Object(contents).to_string());
    }
    Ok(annotations)
}

fn read_or_empty(path: &Path) -> Result<String, SpecError> {
    match std::fs::read_to_string(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(SpecError::Device { path: path.to_owned(), source })
        }
        content => Ok(content.unwrap_or_default()),
    }
}

/// A host or domain name that the kernel and a line of /etc/hosts can take; Docker does not ask for more.
fn host_name(name: &str) -> Result<String, SpecError> {
    if name.len() <= MAX_HOSTNAME_BYTES && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(SpecError::Process(format!("invalid hostname format: {name}")))
}

#[cfg(test)]
mod tests;
