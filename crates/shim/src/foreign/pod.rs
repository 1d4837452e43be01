//! What CRI says of a container's part in its pod, and what that means for its specification.
//!
//! Source: containerd pkg/cri/annotations; containerd pkg/cri/opts, `WithPodNamespaces`.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount, Spec};
use proto::control::UtilityVmRequest;
use proto::{ErrorKind, Status};

use super::Options;
use crate::spec::GUEST_SHARED_MEMORY;

/// CRI's word for what a container is in its pod.
const PART: &str = "io.kubernetes.cri.container-type";
/// What a pod may use in all, from containerd 1.7 on.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Where containers have the memory that they share.
const SHARED_MEMORY: &str = "/dev/shm";

/// A container's part in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is in none.
    Alone,
    /// It stands for the pod.
    Sandbox,
    /// It is one of the pod's.
    Member,
}

impl Part {
    /// What the specification says.
    ///
    /// # Errors
    /// `InvalidArgument` for a word that is not known.
    pub fn of(spec: &Spec) -> Result<Self, Status> {
        match annotation(spec, PART) {
            None => Ok(Self::Alone),
            Some("sandbox") => Ok(Self::Sandbox),
            Some("container") => Ok(Self::Member),
            Some(other) => {
                Err(Status::new(ErrorKind::InvalidArgument, format!("annotation {PART}: {other:?} is not known")))
            }
        }
    }
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}

/// Makes a member's specification one for the pod's utility VM: network, names, IPC and shared memory are the guest's.
///
/// # Errors
/// `NotImplemented` when it is to share processes with somebody.
pub fn adapt_member(spec: &mut Spec) -> Result<(), Status> {
    if let Some(linux) = spec.linux_mut() {
        let namespaces = linux.namespaces().clone().unwrap_or_default();
        let own_processes =
            namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none());
        if !own_processes {
            let what = "a pid namespace of somebody else cannot be used with isolation hyperv";
            return Err(Status::new(ErrorKind::NotImplemented, what));
        }
        let of_pod = [LinuxNamespaceType::Network, LinuxNamespaceType::Uts, LinuxNamespaceType::Ipc];
        let mut kept: Vec<_> = namespaces.into_iter().filter(|namespace| !of_pod.contains(&namespace.typ())).collect();
        // On a host of version 1 CRI names none, and a container would see the cgroups of its neighbours.
        if kept.iter().all(|namespace| namespace.typ() != LinuxNamespaceType::Cgroup) {
            let mut own = LinuxNamespace::default();
            own.set_typ(LinuxNamespaceType::Cgroup);
            kept.push(own);
        }
        linux.set_namespaces(Some(kept));
    }
    spec.set_hostname(None).set_domainname(None);
    let is_shared = |mount: &&mut Mount| {
        mount.destination() == Path::new(SHARED_MEMORY)
            && mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
    };
    for mount in spec.mounts_mut().iter_mut().flatten().filter(is_shared) {
        mount.set_source(Some(GUEST_SHARED_MEMORY.into()));
    }
    Ok(())
}

/// As large as the pod: what CRI says, or what the administrator does.
pub fn size(vm: &mut UtilityVmRequest, spec: &Spec, options: &Options) {
    let number = |name: &str| annotation(spec, name).and_then(|text| text.parse::<u64>().ok()).filter(|&n| n > 0);
    vm.memory_bytes = number(MEMORY).or_else(|| options.pod_memory_mib.map(|mib| mib.saturating_mul(1 << 20)));
    let period = number(PERIOD).unwrap_or(100_000);
    let asked = number(QUOTA).map(|quota| (quota.saturating_mul(1000) / period).max(1));
    vm.cpus_milli = asked.or(options.pod_cpus.map(|cpus| cpus.saturating_mul(1000)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str, annotations: &[(&str, &str)]) -> Spec {
        let mut spec = Spec::default();
        let mut linux = spec.linux().clone().unwrap();
        linux.set_namespaces(Some(serde_json::from_str(namespaces).unwrap()));
        spec.set_linux(Some(linux));
        let pairs = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        spec.set_annotations(Some(pairs.collect()));
        spec
    }

    #[test]
    fn a_member_shares_what_is_the_guests_and_has_its_own_processes() {
        let all = r#"[{"type":"pid"},{"type":"ipc","path":"/proc/7/ns/ipc"},{"type":"mount"},
            {"type":"uts","path":"/proc/7/ns/uts"},{"type":"network","path":"/proc/7/ns/net"}]"#;
        let mut member = spec(all, &[(PART, "container")]);
        member.set_hostname(Some("h".to_owned()));
        let shm = r#"[{"destination":"/dev/shm","type":"bind","source":"/host/shm","options":["rbind","ro"]},
            {"destination":"/data","type":"bind","source":"/host/data","options":["rbind"]}]"#;
        member.set_mounts(Some(serde_json::from_str(shm).unwrap()));
        assert_eq!(Part::of(&member).unwrap(), Part::Member);
        adapt_member(&mut member).unwrap();
        let left: Vec<_> = member.linux().as_ref().unwrap().namespaces().iter().flatten().map(|n| n.typ()).collect();
        assert_eq!(left, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
        assert_eq!(*member.hostname(), None);
        let sources: Vec<_> = member.mounts().iter().flatten().map(|mount| mount.source().clone().unwrap()).collect();
        assert_eq!(sources, [Path::new(GUEST_SHARED_MEMORY), Path::new("/host/data")]);
        for shared in [r#"[{"type":"pid","path":"/proc/7/ns/pid"}]"#, r#"[{"type":"mount"}]"#] {
            let refused = adapt_member(&mut spec(shared, &[])).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::NotImplemented, "{shared}");
        }
    }

    #[test]
    fn a_part_that_is_not_known_is_told() {
        assert_eq!(Part::of(&spec("[]", &[])).unwrap(), Part::Alone);
        assert_eq!(Part::of(&spec("[]", &[(PART, "sandbox")])).unwrap(), Part::Sandbox);
        assert_eq!(Part::of(&spec("[]", &[(PART, "x")])).unwrap_err().kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_pod_is_as_large_as_cri_says_or_else_the_administrator() {
        let options = Options { pod_memory_mib: Some(2048), pod_cpus: Some(2), ..Options::default() };
        let of = |annotations: &[(&str, &str)], options: &Options| {
            let spec = spec("[]", annotations);
            let mut vm = super::super::utility_vm(&spec, options, "k8s.io", Path::new("/b"));
            size(&mut vm, &spec, options);
            (vm.memory_bytes, vm.cpus_milli)
        };
        assert_eq!(of(&[], &Options::default()), (None, None));
        assert_eq!(of(&[], &options), (Some(2 << 30), Some(2000)));
        let cri = [(MEMORY, "536870912"), (QUOTA, "50000"), (PERIOD, "100000")];
        assert_eq!(of(&cri, &options), (Some(512 << 20), Some(500)));
        assert_eq!(of(&[(MEMORY, "0"), (QUOTA, "-1")], &Options::default()), (None, None));
    }
}
