//! The mount of cgroups, version 1.
//!
//! libcontainer 0.7 mounts each hierarchy so that a container may write to it, whatever the specification says, and so raise its own
//! limits; of systemd's it mounts the host's whole. And in a pid namespace that a container joins it reads the cgroups of whatever
//! process of the host has the number that the container's own has within: somebody else's, or none, which ends the creation. So the
//! mount is spelled out: a small file system with the container's folder of each hierarchy in it, read-only unless said otherwise.
//!
//! Source: runc libcontainer/rootfs_linux.go, `mountCgroupV1`.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{Mount, MountBuilder, Spec};

use super::SpecError;

const HIERARCHIES: &str = "/sys/fs/cgroup";
/// The ones that every container is put in, so that its folder is there by the time of the mount.
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "pids",
    "perf_event",
    "memory",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// Spells it out, where there is version 1. When: `linux.cgroupsPath` is a plain path.
pub fn spell_out(spec: &mut Spec) -> Result<(), SpecError> {
    let own = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let own = own.ok_or(SpecError::Missing("linux.cgroupsPath"))?;
    let mounted: Vec<&str> = CONTROLLERS.into_iter().filter(|name| has(name)).collect();
    if mounted.is_empty() {
        return Ok(());
    }
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        if mount.typ().as_deref() == Some("cgroup") {
            mounts.extend(folders(mount, &own, &mounted).map_err(|error| SpecError::Invalid(error.to_string()))?);
        } else {
            mounts.push(mount.clone());
        }
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// True for a hierarchy of version 1.
fn has(controller: &str) -> bool {
    fs::exists(Path::new(HIERARCHIES).join(controller).join("cgroup.procs")).unwrap_or(false)
}

fn folders(mount: &Mount, own: &Path, controllers: &[&str]) -> Result<Vec<Mount>, oci_spec::OciSpecError> {
    let text = |options: &[&str]| options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
    let tmpfs = MountBuilder::default()
        .destination(mount.destination())
        .typ("tmpfs")
        .source("tmpfs")
        .options(text(&["noexec", "nosuid", "nodev", "mode=755"]))
        .build()?;
    let is_fixed = mount.options().iter().flatten().any(|option| option == "ro");
    let below = own.strip_prefix("/").unwrap_or(own);
    let folder = |name: &&str| {
        MountBuilder::default()
            .destination(mount.destination().join(name))
            .typ("bind")
            .source(Path::new(HIERARCHIES).join(name).join(below))
            .options(text(&["rbind", "nosuid", "noexec", "nodev", if is_fixed { "ro" } else { "rw" }]))
            .build()
    };
    std::iter::once(Ok(tmpfs)).chain(controllers.iter().map(folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let text = r#"{"ociVersion": "1.0.2", "linux": {"cgroupsPath": "/pod/c"}, "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}]}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn nothing_but_the_mount_of_cgroups_changes() {
        let mut after = spec();
        spell_out(&mut after).unwrap();
        if !has("memory") {
            assert_eq!(after, spec(), "there is nothing of version 1 to spell out");
            return;
        }
        let kinds: Vec<_> = after.mounts().iter().flatten().map(|mount| mount.typ().as_deref().unwrap()).collect();
        assert_eq!((kinds[0], kinds[1], kinds[2], kinds[kinds.len() - 1]), ("proc", "tmpfs", "bind", "bind"));
        assert!(!kinds.contains(&"cgroup"));
        assert_eq!(after.mounts().iter().flatten().last(), spec().mounts().iter().flatten().last());
    }

    #[test]
    fn each_hierarchy_is_the_containers_folder_and_as_fixed_as_asked() {
        let cgroup = spec().mounts().as_ref().unwrap()[1].clone();
        let mounts = folders(&cgroup, Path::new("/pod/c"), &["memory", "pids"]).unwrap();
        let seen: Vec<_> =
            mounts.iter().map(|mount| (mount.destination().as_path(), mount.source().as_deref())).collect();
        let path = Path::new;
        assert_eq!(
            seen,
            [
                (path("/sys/fs/cgroup"), Some(path("tmpfs"))),
                (path("/sys/fs/cgroup/memory"), Some(path("/sys/fs/cgroup/memory/pod/c"))),
                (path("/sys/fs/cgroup/pids"), Some(path("/sys/fs/cgroup/pids/pod/c"))),
            ]
        );
        assert!(mounts[1..].iter().all(|mount| mount.options().iter().flatten().any(|option| option == "ro")));
    }
}
