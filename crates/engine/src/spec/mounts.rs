//! What is mounted in a container: the kernel's file systems, /dev, the three network files, tmpfs, and binds.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use bollard::models::{HostConfig, MountType};
use oci_spec::runtime::Mount;
use proto::Isolation;

use super::namespaces::Shared;
use super::{SpecError, SpecInput, tmpfs};

/// Bytes: /dev/shm when `--shm-size` is not given. Source: moby `daemon/config`.
const SHM_BYTES: i64 = 64 * 1024 * 1024;
/// Where the guest keeps the files that the host sends it in [`super::FILES_ANNOTATION`].
pub(super) const GUEST_FILES: &str = "/run/bulkhead/files";

/// The files that tell a container its names, in /etc and in the container's folder on the host.
pub(super) const NETWORK_FILES: [&str; 3] = ["resolv.conf", "hostname", "hosts"];

/// Every mount in the order in which they are made: a folder before what is below it.
pub(super) fn decide(input: &SpecInput<'_>, shared: Shared) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = kernel_file_systems(input.host_config, shared)?;
    mounts.extend(network_files(input));
    let given = given(input.host_config, input.isolation)?;
    let mut seen = HashSet::new();
    for mount in &given {
        if !seen.insert(mount.destination().clone()) {
            return Err(SpecError::Mount(format!("Duplicate mount point: {}", mount.destination().display())));
        }
    }
    if input.config.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()) {
        return Err(no_volumes());
    }
    // What the user mounts replaces the default at that place.
    mounts.retain(|mount| !seen.contains(mount.destination()));
    let read_only = input.host_config.readonly_rootfs.unwrap_or_default();
    if read_only {
        for mount in &mut mounts {
            let stays = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"];
            if !stays.iter().any(|path| mount.destination() == Path::new(path)) {
                set_read_only(mount);
            }
        }
    }
    mounts.extend(given);
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

/// How the root takes part in mounts and unmounts of the host: not at all, unless a bind asks for it.
///
/// Source: moby `daemon/oci_linux.go`, `withMounts`.
pub(super) fn propagation(mounts: &[Mount]) -> &'static str {
    let any = |words: [&str; 2]| {
        let options = mounts.iter().flat_map(|mount| mount.options().iter().flatten());
        options.into_iter().any(|option| words.contains(&option.as_str()))
    };
    if any(["shared", "rshared"]) {
        "shared"
    } else if any(["slave", "rslave"]) {
        "slave"
    } else {
        "private"
    }
}

/// Makes the sources of `-v SOURCE:DESTINATION` that do not exist, as Docker does for `-v` and not for `--mount`.
///
/// # Errors
/// [`SpecError::Mount`] if a binding cannot be read, [`SpecError::Device`] if a folder cannot be made.
pub fn create_missing_bind_sources(host: &HostConfig) -> Result<(), SpecError> {
    for text in host.binds.as_deref().unwrap_or_default() {
        let bind = Bind::parse(text)?;
        if !bind.source.exists() {
            std::fs::create_dir_all(&bind.source)
                .map_err(|source| SpecError::Device { path: bind.source.clone(), source })?;
        }
    }
    Ok(())
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

fn set_read_only(mount: &mut Mount) {
    let options = mount.options_mut().get_or_insert_default();
    options.retain(|option| option != "rw" && option != "ro");
    options.push("ro".into());
}

/// Source: moby `daemon/pkg/oci/defaults.go`.
fn kernel_file_systems(host: &HostConfig, shared: Shared) -> Result<Vec<Mount>, SpecError> {
    let shm_bytes = match host.shm_size.unwrap_or_default() {
        0 => SHM_BYTES,
        negative if negative < 0 => return Err(SpecError::Limit("SHM size can not be less than 0".into())),
        bytes => bytes,
    };
    let access = if host.privileged.unwrap_or_default() { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &[access, "nosuid", "noexec", "nodev"]),
    ];
    if shared.ipc {
        mounts.push(mount("/dev/mqueue", "bind", "/dev/mqueue", &["rbind", "nosuid", "noexec", "nodev"]));
        mounts.push(mount("/dev/shm", "bind", "/dev/shm", &["rbind", "nosuid", "noexec", "nodev"]));
        return Ok(mounts);
    }
    mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    if !shared.no_shm {
        let size = format!("size={shm_bytes}");
        mounts.push(mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
    }
    Ok(mounts)
}

/// /etc/resolv.conf, /etc/hostname and /etc/hosts: from the host's files, or from what the guest is sent.
fn network_files(input: &SpecInput<'_>) -> Vec<Mount> {
    NETWORK_FILES
        .into_iter()
        .map(|name| {
            let source = match input.isolation {
                Isolation::Process => input.files.join(name).display().to_string(),
                Isolation::Hyperv => format!("{GUEST_FILES}/{name}"),
            };
            mount(&format!("/etc/{name}"), "bind", &source, &["rbind", "rprivate"])
        })
        .collect()
}

/// What the user mounts: `--tmpfs`, `-v`, `--mount`.
fn given(host: &HostConfig, isolation: Isolation) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = Vec::new();
    for (destination, options) in host.tmpfs.iter().flatten() {
        let path = absolute(destination, destination)?;
        mounts.push(tmpfs_mount(&path, tmpfs::merge(options).map_err(SpecError::Mount)?));
    }
    for text in host.binds.as_deref().unwrap_or_default() {
        let bind = Bind::parse(text)?;
        refuse_in_a_utility_vm(isolation)?;
        mounts.push(bind.mount());
    }
    if host.volumes_from.as_ref().is_some_and(|from| !from.is_empty()) {
        return Err(no_volumes());
    }
    for given in host.mounts.as_deref().unwrap_or_default() {
        mounts.push(typed_mount(given, isolation)?);
    }
    Ok(mounts)
}

fn tmpfs_mount(destination: &Path, options: Vec<String>) -> Mount {
    let mut mount = mount("", "tmpfs", "tmpfs", &[]);
    mount.set_destination(destination.to_owned()).set_options(Some(options));
    mount
}

fn no_volumes() -> SpecError {
    SpecError::NotAvailable("volumes are not there yet: use --tmpfs, or bind a folder with isolation process".into())
}

fn refuse_in_a_utility_vm(isolation: Isolation) -> Result<(), SpecError> {
    match isolation {
        Isolation::Process => Ok(()),
        Isolation::Hyperv => Err(SpecError::NotAvailable(
            "bind mounts cannot be used with isolation hyperv yet: use --tmpfs, or isolation process".into(),
        )),
    }
}

/// One entry of `HostConfig.Mounts`, what `--mount` sends.
fn typed_mount(given: &bollard::models::Mount, isolation: Isolation) -> Result<Mount, SpecError> {
    let target = given.target.as_deref().unwrap_or_default();
    let read_only = given.read_only.unwrap_or_default();
    match given.typ {
        Some(MountType::BIND) => {
            let source = given.source.as_deref().unwrap_or_default();
            let invalid = |why: String| SpecError::Mount(format!("invalid mount config for type \"bind\": {why}"));
            refuse_in_a_utility_vm(isolation)?;
            if !Path::new(source).is_absolute() {
                return Err(invalid(format!("invalid mount path: '{source}' mount path must be absolute")));
            }
            let options = given.bind_options.as_ref();
            if !Path::new(source).exists() {
                if options.and_then(|options| options.create_mountpoint) != Some(true) {
                    return Err(invalid(format!("bind source path does not exist: {source}")));
                }
                std::fs::create_dir_all(source)
                    .map_err(|error| SpecError::Device { path: source.into(), source: error })?;
            }
            let propagation = options.and_then(|options| options.propagation).map(|word| word.to_string());
            let propagation = propagation.filter(|word| !word.is_empty()).unwrap_or_else(|| "rprivate".into());
            let recursive = options.and_then(|options| options.non_recursive) != Some(true);
            let destination = absolute(target, source)?;
            let bind = Bind { source: source.into(), destination, read_only, propagation, recursive };
            Ok(bind.mount())
        }
        Some(MountType::TMPFS) => {
            let destination = absolute(target, target)?;
            let mut options = tmpfs::merge("").map_err(SpecError::Mount)?;
            if let Some(tmpfs) = &given.tmpfs_options {
                options.extend(tmpfs.size_bytes.filter(|bytes| *bytes > 0).map(|bytes| format!("size={bytes}")));
                options.extend(tmpfs.mode.filter(|mode| *mode > 0).map(|mode| format!("mode={mode:o}")));
            }
            let mut mount = tmpfs_mount(&destination, options);
            if read_only {
                set_read_only(&mut mount);
            }
            Ok(mount)
        }
        Some(MountType::VOLUME) => Err(no_volumes()),
        Some(other) => Err(SpecError::NotAvailable(format!("mounts of type {other} are not there yet"))),
        None => Err(SpecError::Mount("mount type unknown: \"\"".into())),
    }
}

/// One bind of a folder or file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bind {
    source: PathBuf,
    destination: PathBuf,
    read_only: bool,
    propagation: String,
    recursive: bool,
}

impl Bind {
    /// Reads `SOURCE:DESTINATION[:OPTIONS]`.
    fn parse(text: &str) -> Result<Self, SpecError> {
        let invalid = || SpecError::Mount(format!("invalid volume specification: '{text}'"));
        let fields: Vec<&str> = text.split(':').collect();
        let (source, destination, options) = match fields[..] {
            [source, destination] => (source, destination, ""),
            [source, destination, options] => (source, destination, options),
            _ => return Err(invalid()),
        };
        if source.is_empty() || destination.is_empty() {
            return Err(invalid());
        }
        if !source.starts_with('/') {
            return Err(no_volumes());
        }
        let destination = absolute(destination, text)?;
        let mut bind = Self {
            source: source.into(),
            destination,
            read_only: false,
            propagation: "rprivate".into(),
            recursive: true,
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" | "readonly" => bind.read_only = true,
                "rw" | "z" | "Z" | "nocopy" | "consistent" | "cached" | "delegated" | "rbind" => {}
                "bind" => bind.recursive = false,
                "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" => {
                    bind.propagation = option.to_owned();
                }
                _ => return Err(SpecError::Mount(format!("invalid mode: {options}"))),
            }
        }
        Ok(bind)
    }

    fn mount(&self) -> Mount {
        let mut options = vec![if self.recursive { "rbind" } else { "bind" }.to_owned(), self.propagation.clone()];
        if self.read_only {
            options.push("ro".into());
        }
        let mut mount = mount("", "bind", "", &[]);
        mount
            .set_destination(self.destination.clone())
            .set_source(Some(self.source.clone()))
            .set_options(Some(options));
        mount
    }
}

/// A mount's place in the container: absolute, not the root, nothing that leads upwards.
fn absolute(destination: &str, text: &str) -> Result<PathBuf, SpecError> {
    let path = Path::new(destination);
    if !path.is_absolute() {
        return Err(SpecError::Mount(format!("invalid mount path: '{destination}' mount path must be absolute")));
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean == Path::new("/") {
        return Err(SpecError::Mount(format!(
            "invalid volume specification: '{text}': invalid specification: destination can't be '/'"
        )));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mounts: &[Mount], destination: &str) -> Vec<String> {
        let mount = mounts.iter().find(|mount| mount.destination() == Path::new(destination)).expect(destination);
        mount.options().clone().unwrap_or_default()
    }

    fn host(change: impl FnOnce(&mut HostConfig)) -> HostConfig {
        let mut host = HostConfig::default();
        change(&mut host);
        host
    }

    #[test]
    fn the_kernels_file_systems_are_mounted_as_docker_mounts_them() {
        let mounts = kernel_file_systems(&HostConfig::default(), Shared::default()).unwrap();
        assert_eq!(options(&mounts, "/proc"), ["nosuid", "noexec", "nodev"]);
        assert!(
            options(&mounts, "/sys").contains(&"ro".into())
                && options(&mounts, "/sys/fs/cgroup").contains(&"ro".into())
        );
        assert!(options(&mounts, "/dev/shm").contains(&"size=67108864".into()));
        assert!(options(&mounts, "/dev").contains(&"size=65536k".into()));
        let privileged = kernel_file_systems(&host(|h| h.privileged = Some(true)), Shared::default()).unwrap();
        assert!(options(&privileged, "/sys").contains(&"rw".into()));
        assert!(kernel_file_systems(&host(|h| h.shm_size = Some(-1)), Shared::default()).is_err());
        let no_shm =
            kernel_file_systems(&HostConfig::default(), Shared { no_shm: true, ..Default::default() }).unwrap();
        assert!(no_shm.iter().all(|mount| mount.destination() != Path::new("/dev/shm")));
    }

    #[test]
    fn binds_are_read_as_docker_reads_them() {
        let bind = Bind::parse("/src:/dst:ro,rslave").unwrap();
        assert_eq!((bind.read_only, bind.propagation.as_str()), (true, "rslave"));
        assert_eq!(bind.mount().options().clone().unwrap(), ["rbind", "rslave", "ro"]);
        for (bad, text) in [
            ("/a", "invalid volume specification: '/a'"),
            ("/a:/b:ro:x", "invalid volume specification: '/a:/b:ro:x'"),
            ("/a:b", "invalid mount path: 'b' mount path must be absolute"),
            ("/a:/b:odd", "invalid mode: odd"),
        ] {
            assert_eq!(Bind::parse(bad).unwrap_err().to_string(), text);
        }
        assert!(Bind::parse("/a:/b/..").unwrap_err().to_string().contains("destination can't be '/'"));
        assert!(matches!(Bind::parse("data:/b"), Err(SpecError::NotAvailable(_))));
        assert_eq!(Bind::parse("/a:/../../etc/x").unwrap().destination, Path::new("/etc/x"));
    }

    #[test]
    fn the_root_follows_the_host_only_if_a_bind_does() {
        let with = |option: &str| propagation(&[mount("/x", "bind", "/y", &["rbind", option])]);
        assert_eq!((with("rprivate"), with("rslave"), with("shared")), ("private", "slave", "shared"));
    }

    #[test]
    fn a_utility_vm_takes_tmpfs_and_no_binds() {
        let tmpfs = host(|h| h.tmpfs = Some([("/scratch".to_owned(), "size=1m".to_owned())].into()));
        assert_eq!(given(&tmpfs, Isolation::Hyperv).unwrap().len(), 1);
        let bind = host(|h| h.binds = Some(vec!["/tmp:/x".into()]));
        assert!(matches!(given(&bind, Isolation::Hyperv), Err(SpecError::NotAvailable(_))));
        assert_eq!(given(&bind, Isolation::Process).unwrap().len(), 1);
    }

    #[test]
    fn a_mount_from_nowhere_is_refused() {
        let missing = bollard::models::Mount {
            typ: Some(MountType::BIND),
            source: Some("/nosuch".into()),
            target: Some("/x".into()),
            ..Default::default()
        };
        let error = typed_mount(&missing, Isolation::Process).unwrap_err().to_string();
        assert_eq!(error, "invalid mount config for type \"bind\": bind source path does not exist: /nosuch");
    }
}
