//! Namespaces: a container has its own of every kind unless told otherwise.

use std::path::Path;

use bollard::models::{ContainerConfig, HostConfig, HostConfigCgroupnsModeEnum};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use proto::Isolation;

use super::{NetworkNamespace, SpecError};

/// Which of the namespaces a container shares with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shared {
    pub(super) pid: bool,
    pub(super) ipc: bool,
    pub(super) uts: bool,
    pub(super) cgroup: bool,
    /// `--ipc=none`: own namespace, and no /dev/shm.
    pub(super) no_shm: bool,
}

/// Reads the modes of the HostConfig. A utility VM has nothing of the host's to share.
pub(super) fn decide(config: &ContainerConfig, host: &HostConfig, isolation: Isolation) -> Result<Shared, SpecError> {
    let pid = mode("pid", host.pid_mode.as_deref(), &["private"], isolation)?;
    let ipc = mode("ipc", host.ipc_mode.as_deref(), &["private", "shareable", "none"], isolation)?;
    let uts = mode("uts", host.uts_mode.as_deref(), &[], isolation)?;
    if host.network_mode.as_deref() == Some("host") && isolation == Isolation::Hyperv {
        return Err(no_host("network"));
    }
    mode("userns", host.userns_mode.as_deref(), &[], Isolation::Process)?;
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if uts && (named(&config.hostname) || named(&config.domainname)) {
        return Err(SpecError::Namespace("conflicting options: hostname and the UTS mode".into()));
    }
    let cgroup = match (host.cgroupns_mode, isolation) {
        (Some(HostConfigCgroupnsModeEnum::HOST), Isolation::Hyperv) => {
            return Err(no_host("cgroupns"));
        }
        (Some(HostConfigCgroupnsModeEnum::HOST), Isolation::Process) => true,
        (Some(HostConfigCgroupnsModeEnum::PRIVATE), _) | (_, Isolation::Hyperv) => false,
        // As Docker: private where cgroup v2 rules, the host's with v1.
        (_, Isolation::Process) => !Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
    };
    Ok(Shared { pid, ipc, uts, cgroup, no_shm: host.ipc_mode.as_deref() == Some("none") })
}

/// True if the namespace is the host's.
fn mode(what: &str, mode: Option<&str>, own: &[&str], isolation: Isolation) -> Result<bool, SpecError> {
    match mode.unwrap_or_default() {
        "" => Ok(false),
        "host" if isolation == Isolation::Hyperv => Err(no_host(what)),
        "host" => Ok(true),
        word if own.contains(&word) => Ok(false),
        word if word.starts_with("container:") => {
            Err(SpecError::NotAvailable(format!("--{what}={word}: joining another container is not there yet")))
        }
        word => {
            let what = if what == "userns" { what.to_owned() } else { what.to_ascii_uppercase() };
            Err(SpecError::Namespace(format!("invalid {what} mode: {word}")))
        }
    }
}

fn no_host(what: &str) -> SpecError {
    SpecError::Namespace(format!("--{what}=host cannot be combined with isolation hyperv: it has a kernel of its own"))
}

impl Shared {
    /// The list for the spec.
    pub(super) fn list(self, network: NetworkNamespace<'_>) -> Vec<LinuxNamespace> {
        let own = [
            (LinuxNamespaceType::Mount, true),
            (LinuxNamespaceType::Network, network != NetworkNamespace::Host),
            (LinuxNamespaceType::Uts, !self.uts),
            (LinuxNamespaceType::Pid, !self.pid),
            (LinuxNamespaceType::Ipc, !self.ipc),
            (LinuxNamespaceType::Cgroup, !self.cgroup),
        ];
        let namespace = |(typ, _)| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(typ);
            if let (LinuxNamespaceType::Network, NetworkNamespace::At(path)) = (typ, network) {
                namespace.set_path(Some(path.to_owned()));
            }
            namespace
        };
        own.into_iter().filter(|(_, own)| *own).map(namespace).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(change: impl FnOnce(&mut HostConfig), isolation: Isolation) -> Result<Shared, SpecError> {
        let mut host = HostConfig::default();
        change(&mut host);
        decide(&ContainerConfig::default(), &host, isolation)
    }

    #[test]
    fn everything_is_the_containers_own_by_default() {
        let shared = shared(|_| (), Isolation::Hyperv).unwrap();
        assert_eq!((shared, shared.list(NetworkNamespace::Own).len()), (Shared::default(), 6));
    }

    #[test]
    fn the_host_is_shared_only_by_process_containers() {
        assert!(shared(|h| h.pid_mode = Some("host".into()), Isolation::Process).unwrap().pid);
        for change in [
            |h: &mut HostConfig| h.pid_mode = Some("host".into()),
            |h: &mut HostConfig| h.ipc_mode = Some("host".into()),
        ] {
            let error = shared(change, Isolation::Hyperv).unwrap_err().to_string();
            assert!(error.contains("cannot be combined with isolation hyperv"), "{error}");
        }
        assert!(matches!(
            shared(|h| h.pid_mode = Some("container:x".into()), Isolation::Process),
            Err(SpecError::NotAvailable(_))
        ));
        assert_eq!(
            shared(|h| h.ipc_mode = Some("odd".into()), Isolation::Process).unwrap_err().to_string(),
            "invalid IPC mode: odd"
        );
    }

    #[test]
    fn a_host_name_cannot_be_given_to_the_host() {
        let config = ContainerConfig { hostname: Some("x".into()), ..Default::default() };
        let host = HostConfig { uts_mode: Some("host".into()), ..Default::default() };
        assert!(decide(&config, &host, Isolation::Process).is_err());
    }
}
