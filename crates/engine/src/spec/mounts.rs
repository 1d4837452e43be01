//! What is mounted in a container: the kernel's file systems, /dev, the three network files, tmpfs, and binds.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use bollard::models::HostConfig;
use oci_spec::runtime::Mount;
use proto::Isolation;

use super::namespaces::Shared;
use super::{SpecError, SpecInput, tmpfs};
use crate::container::mount_point::{Below, MountKind, MountPoint};

/// Bytes: /dev/shm when `--shm-size` is not given. Source: moby `daemon/config`.
const SHM_BYTES: i64 = 64 * 1024 * 1024;
/// Where the guest keeps the files that the host sends it in [`super::FILES_ANNOTATION`].
pub(super) const GUEST_FILES: &str = "/run/bulkhead/files";

/// The files that tell a container its names, in /etc and in the container's folder on the host.
pub const NETWORK_FILES: [&str; 3] = ["resolv.conf", "hostname", "hosts"];

/// Every mount in the order in which they are made: a folder before what is below it.
pub(super) fn decide(input: &SpecInput<'_>, shared: Shared) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = kernel_file_systems(input.host_config, shared)?;
    mounts.extend(network_files(input));
    let given = given(input)?;
    let mut seen = HashSet::new();
    for mount in &given {
        if !seen.insert(mount.destination().clone()) {
            return Err(SpecError::Mount(format!("Duplicate mount point: {}", mount.destination().display())));
        }
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

/// What the user mounts: `--tmpfs`, and what was decided of `-v` and `--mount`.
fn given(input: &SpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = Vec::new();
    for (destination, options) in input.host_config.tmpfs.iter().flatten() {
        let path = absolute(destination)?;
        mounts.push(tmpfs_mount(&path, tmpfs::merge(options).map_err(SpecError::Mount)?));
    }
    for (number, point) in input.mounts.iter().enumerate() {
        check_place(point, input.isolation)?;
        mounts.push(match point.kind {
            MountKind::Tmpfs => {
                let mut mount = tmpfs_mount(&point.destination, point.tmpfs.clone());
                if !point.writable {
                    set_read_only(&mut mount);
                }
                mount
            }
            MountKind::Bind | MountKind::Volume => {
                check_propagation(point, input.isolation)?;
                let part = point.subpath.as_ref().map(|_| subpath_point(input.rootfs, number));
                bind(point, part.as_deref().unwrap_or(&point.source))?
            }
        });
    }
    Ok(mounts)
}

/// Where the shim has the part of a volume that is mounted, by the mount's number: beside the root.
#[must_use]
pub fn subpath_point(rootfs: &Path, number: usize) -> PathBuf {
    rootfs.with_file_name("parts").join(number.to_string())
}

fn tmpfs_mount(destination: &Path, options: Vec<String>) -> Mount {
    let mut mount = mount("", "tmpfs", "tmpfs", &[]);
    mount.set_destination(destination.to_owned()).set_options(Some(options));
    mount
}

fn bind(point: &MountPoint, source: &Path) -> Result<Mount, SpecError> {
    let word = if point.below == Below::Absent { "bind" } else { "rbind" };
    let propagation = if point.propagation.is_empty() { "rprivate" } else { &point.propagation };
    let mut options = vec![word.to_owned(), propagation.to_owned()];
    if !point.writable {
        options.push("ro".into());
        match (point.below, recursive_attributes()) {
            (Below::Follows | Below::MustBeReadOnly, true) => options.push("rro".into()),
            (Below::MustBeReadOnly, false) => {
                let what = "recursively read-only mounts need Linux 5.12 or later";
                return Err(SpecError::Mount(format!("invalid mount config for type \"bind\": {what}")));
            }
            (Below::Follows | Below::StaysWritable | Below::Absent, _) => {}
        }
    }
    let mut mount = mount("", "bind", "", &[]);
    mount.set_destination(point.destination.clone()).set_source(Some(source.to_owned())).set_options(Some(options));
    Ok(mount)
}

/// The kernel changes the attributes of a whole tree of mounts: `mount_setattr(2)`.
fn recursive_attributes() -> bool {
    let system = rustix::system::uname();
    let mut numbers = system.release().to_str().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok()).unwrap_or_default();
    (next(), next()) >= (5, 12)
}

/// What may be mounted over in /proc, as lxcfs does. Source: runc `libcontainer/rootfs_linux.go`, `checkProcMount`.
const IN_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
];

/// Nothing lies over the kernel's view of the container, but another such view.
fn check_place(point: &MountPoint, isolation: Isolation) -> Result<(), SpecError> {
    let place = point.destination.display();
    if point.destination == Path::new("/proc") {
        let is_proc = || rustix::fs::statfs(&point.source).is_ok_and(|facts| facts.f_type == PROC_SUPER_MAGIC);
        if point.kind == MountKind::Bind && isolation == Isolation::Process && is_proc() {
            return Ok(());
        }
        return Err(SpecError::Mount(format!("{place} cannot be mounted because it is not of type proc")));
    }
    if point.destination.starts_with("/proc") && !IN_PROC.iter().any(|path| point.destination == Path::new(path)) {
        return Err(SpecError::Mount(format!("{place} cannot be mounted because it is inside /proc")));
    }
    Ok(())
}

/// Source: `linux/magic.h`.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// The mounts of a utility VM are its own kernel's: what is mounted on one side is not seen on the other.
fn check_propagation(point: &MountPoint, isolation: Isolation) -> Result<(), SpecError> {
    let apart = matches!(point.propagation.as_str(), "" | "private" | "rprivate");
    if isolation == Isolation::Process || apart {
        return Ok(());
    }
    Err(SpecError::NotAvailable(format!(
        "bind propagation {} cannot be used with isolation hyperv, whose kernel has mounts of its own",
        point.propagation
    )))
}

/// The place of a `--tmpfs`: absolute, not the root, nothing that leads upwards.
fn absolute(destination: &str) -> Result<PathBuf, SpecError> {
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
            "invalid volume specification: '{destination}': invalid specification: destination can't be '/'"
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

    fn point(destination: &str, change: impl FnOnce(&mut MountPoint)) -> MountPoint {
        let mut point = MountPoint::new(MountKind::Bind, destination.into());
        point.source = "/src".into();
        change(&mut point);
        point
    }

    #[test]
    fn a_read_only_bind_is_so_with_what_is_below_it() {
        let options = |change: fn(&mut MountPoint)| {
            let point = point("/dst", |point| {
                point.writable = false;
                change(point);
            });
            bind(&point, &point.source).unwrap().options().clone().unwrap()
        };
        let below = if recursive_attributes() {
            vec!["rbind", "rprivate", "ro", "rro"]
        } else {
            vec!["rbind", "rprivate", "ro"]
        };
        assert_eq!(options(|_| ()), below);
        assert_eq!(options(|point| point.below = Below::StaysWritable), ["rbind", "rprivate", "ro"]);
        assert_eq!(options(|point| point.below = Below::Absent), ["bind", "rprivate", "ro"]);
        assert_eq!(options(|point| point.writable = true), ["rbind", "rprivate"]);
    }

    #[test]
    fn nothing_is_mounted_over_proc() {
        for bad in ["/proc", "/proc/x", "/proc/1/ns"] {
            assert!(check_place(&point(bad, |_| ()), Isolation::Process).is_err(), "{bad}");
        }
        let own = point("/proc", |point| point.source = "/proc".into());
        check_place(&own, Isolation::Process).unwrap();
        assert!(check_place(&own, Isolation::Hyperv).is_err());
        for good in ["/process", "/proc/meminfo"] {
            check_place(&point(good, |_| ()), Isolation::Process).unwrap();
        }
    }

    #[test]
    fn the_root_follows_the_host_only_if_a_bind_does() {
        let with = |option: &str| propagation(&[mount("/x", "bind", "/y", &["rbind", option])]);
        assert_eq!((with("rprivate"), with("rslave"), with("shared")), ("private", "slave", "shared"));
    }
}
