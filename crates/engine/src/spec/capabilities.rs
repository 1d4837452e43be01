//! Capabilities: Docker's fourteen, and how `--cap-add`, `--cap-drop` and `--privileged` change them.

use std::collections::HashSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use proto::Isolation;

use super::SpecError;

/// What a container may do when nothing is said. Source: moby `daemon/pkg/oci/caps/defaults.go`.
pub(super) const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability with its number, up to Linux 5.9's `CAP_CHECKPOINT_RESTORE`; none has been added since.
/// Source: Linux `include/uapi/linux/capability.h`.
const ALL: [(Capability, u32); 41] = [
    (Capability::Chown, 0),
    (Capability::DacOverride, 1),
    (Capability::DacReadSearch, 2),
    (Capability::Fowner, 3),
    (Capability::Fsetid, 4),
    (Capability::Kill, 5),
    (Capability::Setgid, 6),
    (Capability::Setuid, 7),
    (Capability::Setpcap, 8),
    (Capability::LinuxImmutable, 9),
    (Capability::NetBindService, 10),
    (Capability::NetBroadcast, 11),
    (Capability::NetAdmin, 12),
    (Capability::NetRaw, 13),
    (Capability::IpcLock, 14),
    (Capability::IpcOwner, 15),
    (Capability::SysModule, 16),
    (Capability::SysRawio, 17),
    (Capability::SysChroot, 18),
    (Capability::SysPtrace, 19),
    (Capability::SysPacct, 20),
    (Capability::SysAdmin, 21),
    (Capability::SysBoot, 22),
    (Capability::SysNice, 23),
    (Capability::SysResource, 24),
    (Capability::SysTime, 25),
    (Capability::SysTtyConfig, 26),
    (Capability::Mknod, 27),
    (Capability::Lease, 28),
    (Capability::AuditWrite, 29),
    (Capability::AuditControl, 30),
    (Capability::Setfcap, 31),
    (Capability::MacOverride, 32),
    (Capability::MacAdmin, 33),
    (Capability::Syslog, 34),
    (Capability::WakeAlarm, 35),
    (Capability::BlockSuspend, 36),
    (Capability::AuditRead, 37),
    (Capability::Perfmon, 38),
    (Capability::Bpf, 39),
    (Capability::CheckpointRestore, 40),
];

/// One word of `--cap-add` or `--cap-drop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    All,
    One(Capability),
}

/// Decides a container's capabilities.
///
/// Shape: words are compared without regard to case, with or without `CAP_`; `ALL` stands for every capability that
/// can be given: those of the daemon's own bounding set for a process container, every one in a utility VM.
pub(super) fn decide(
    add: &[String],
    drop: &[String],
    privileged: bool,
    isolation: Isolation,
) -> Result<Capabilities, SpecError> {
    let add = parse("CapAdd", add)?;
    let drop = parse("CapDrop", drop)?;
    let grantable = match isolation {
        Isolation::Process => bounding_set(),
        Isolation::Hyperv => u64::MAX,
    };
    let all = || ALL.iter().filter(|(_, number)| grantable & (1 << number) != 0).map(|(capability, _)| *capability);
    let added = || {
        add.iter().filter_map(|named| match named {
            Named::One(capability) => Some(*capability),
            Named::All => None,
        })
    };
    Ok(if privileged {
        all().collect()
    } else if add.contains(&Named::All) {
        all().filter(|capability| !drop.contains(&Named::One(*capability))).collect()
    } else if drop.contains(&Named::All) {
        added().collect()
    } else {
        DEFAULT.into_iter().filter(|capability| !drop.contains(&Named::One(*capability))).chain(added()).collect()
    })
}

/// The sets of the OCI process. Inheritable and ambient stay empty, so that a process that is not root loses them on
/// execve and no file can raise them. Source: moby `daemon/pkg/oci/oci.go`, CVE-2022-24769.
pub(super) fn sets(granted: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(granted.clone()))
        .set_effective(Some(granted.clone()))
        .set_permitted(Some(granted.clone()))
        .set_inheritable(Some(HashSet::new()))
        .set_ambient(Some(HashSet::new()));
    sets
}

fn parse(list: &'static str, words: &[String]) -> Result<Vec<Named>, SpecError> {
    words
        .iter()
        .map(|word| {
            let upper = word.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if name == "ALL" && !upper.starts_with("CAP_") {
                return Ok(Named::All);
            }
            let unknown = || SpecError::UnknownCapability { list, name: format!("CAP_{name}") };
            name.parse().map(Named::One).map_err(|_| unknown())
        })
        .collect()
}

/// The bounding set of this process; a daemon can give no more than it has. Unreadable means that nothing is known to
/// be missing: the kernel refuses later what it must.
fn bounding_set() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn decided(add: &[&str], drop: &[&str]) -> Capabilities {
        decide(&words(add), &words(drop), false, Isolation::Hyperv).unwrap()
    }

    #[test]
    fn dockers_fourteen_are_the_default() {
        assert_eq!(decided(&[], &[]), DEFAULT.into_iter().collect::<Capabilities>());
        assert_eq!(decided(&[], &[]).len(), 14);
        assert!(!decided(&[], &[]).contains(&Capability::SysAdmin));
    }

    #[test]
    fn add_and_drop_follow_docker() {
        assert_eq!(decided(&["CAP_SYS_TIME"], &["all"]), [Capability::SysTime].into());
        assert_eq!(decided(&["ALL"], &["mknod"]).len(), 40);
        assert_eq!(decided(&["net_admin"], &["CHOWN", "cap_kill"]).len(), 13);
        assert!(decided(&[], &["ALL"]).is_empty());
        assert_eq!(decide(&[], &[], true, Isolation::Hyperv).unwrap().len(), 41);
    }

    #[test]
    fn an_unknown_capability_is_refused_in_dockers_words() {
        let error = decide(&words(&["foo"]), &[], false, Isolation::Process).unwrap_err();
        assert_eq!(error.to_string(), "invalid CapAdd: unknown capability: \"CAP_FOO\"");
        let error = decide(&[], &words(&["CAP_ALL"]), false, Isolation::Process).unwrap_err();
        assert_eq!(error.to_string(), "invalid CapDrop: unknown capability: \"CAP_ALL\"");
    }

    #[test]
    fn nothing_is_inherited_across_execve() {
        let sets = sets(&decided(&[], &[]));
        assert!(sets.inheritable().as_ref().unwrap().is_empty());
        assert!(sets.ambient().as_ref().unwrap().is_empty());
        assert_eq!(sets.bounding(), sets.effective());
    }
}
