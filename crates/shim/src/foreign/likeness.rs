//! containerd's defaults made those that a utility VM's template has ready (docs/design/0011), where that only makes the wall stronger or
//! says the same in other words.
//!
//! Source: containerd oci/spec.go, `populateDefaultUnixSpec`, beside moby daemon/pkg/oci/defaults.go.

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Spec};
use proto::{MASKED_PATHS, READ_ONLY_PATHS};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Changes the specification of a container that is to run in a utility VM.
///
/// # Errors
/// It cannot be put together, which does not happen.
pub fn make_plain(spec: &mut Spec) -> Result<(), OciSpecError> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.iter_mut().for_each(spell_size);
    // Where cgroups are of version 2, as in every utility VM, containerd gives each container a view of its own.
    if mounts.iter().any(|mount| mount.destination().as_os_str() == "/sys") && !mounts.iter().any(is_of_cgroups) {
        mounts.push(cgroup_mount()?);
    }
    spec.set_mounts(Some(mounts));
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    if !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup) {
        namespaces.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Cgroup).build()?);
    }
    linux.set_namespaces(Some(namespaces));
    let masked = linux.masked_paths().clone();
    linux.set_masked_paths(completed(masked, &MASKED_PATHS));
    let read_only = linux.readonly_paths().clone();
    linux.set_readonly_paths(completed(read_only, &READ_ONLY_PATHS));
    Ok(())
}

/// All of them, where some are given and none besides; who wants none gets none.
fn completed(given: Option<Vec<String>>, all: &[&str]) -> Option<Vec<String>> {
    let is_default = |given: &Vec<String>| !given.is_empty() && given.iter().all(|path| all.contains(&path.as_str()));
    if given.as_ref().is_some_and(is_default) {
        return Some(all.iter().map(ToString::to_string).collect());
    }
    given
}

/// 64 MiB is said by containerd in KiB.
fn spell_size(mount: &mut Mount) {
    if mount.destination().as_os_str() != "/dev/shm" {
        return;
    }
    let mut options = mount.options().clone().unwrap_or_default();
    for option in options.iter_mut().filter(|option| *option == "size=65536k") {
        *option = "size=67108864".to_owned();
    }
    mount.set_options(Some(options));
}

fn is_of_cgroups(mount: &Mount) -> bool {
    mount.destination().starts_with(CGROUPS)
}

fn cgroup_mount() -> Result<Mount, OciSpecError> {
    let options = ["ro", "nosuid", "noexec", "nodev"].map(str::to_owned).to_vec();
    MountBuilder::default().destination(CGROUPS).typ("cgroup").source("cgroup").options(options).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use container::Specialization;

    use super::*;

    fn of_containerd() -> Spec {
        crate::foreign::rehearsal::of_containerd().unwrap()
    }

    #[test]
    fn containerds_default_is_a_plain_container() {
        let mut spec = of_containerd();
        assert!(Specialization::of(&spec, &BTreeMap::new()).is_none());
        make_plain(&mut spec).unwrap();
        assert!(Specialization::of(&spec, &BTreeMap::new()).is_some(), "{spec:?}");
        let again = spec.clone();
        make_plain(&mut spec).unwrap();
        assert_eq!(spec, again);
    }

    #[test]
    fn who_wants_nothing_masked_gets_nothing_masked() {
        let mut spec = of_containerd();
        let linux = spec.linux_mut().as_mut().unwrap();
        linux.set_masked_paths(Some(Vec::new()));
        linux.set_readonly_paths(Some(vec!["/own".to_owned()]));
        make_plain(&mut spec).unwrap();
        let linux = spec.linux().clone().unwrap();
        assert_eq!(linux.masked_paths().clone(), Some(Vec::new()));
        assert_eq!(linux.readonly_paths().clone(), Some(vec!["/own".to_owned()]));
    }
}
