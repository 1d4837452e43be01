//! The system call filter: Docker's default profile from our own table, or a profile in Docker's JSON format.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use serde::Deserialize;

use super::SpecError;
use super::security::Filter;
use super::syscalls;

/// EPERM, what a filtered call returns.
const EPERM: u32 = 1;
/// ENOSYS, so that the C library falls back from clone3, whose flags no filter can see, to clone.
const ENOSYS: u32 = 38;
/// Flags of clone(2) that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// What personality(2) may be asked: Linux, Linux 32 bit, both with UNAME26, and the question itself.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Socket domains, all up to 47 but AF_ALG (38) and AF_VSOCK (40), as (mask, value) on the 32 bits that the kernel looks
/// at: a comparison of all 64 bits could be walked around with high bits that the kernel drops.
const SOCKET_DOMAINS: [(u64, u64); 7] = [
    (0xffff_ffe0, 0),
    (0xffff_fffc, 32),
    (0xffff_fffe, 36),
    (0xffff_ffff, 39),
    (0xffff_ffff, 41),
    (0xffff_fffe, 42),
    (0xffff_fffc, 44),
];

/// AF_VSOCK: of a container that asks for a vsock. In all others it would be a way past the network that the container was given.
const AF_VSOCK: u64 = 40;

/// The filter for a container with these capabilities; none where it is privileged or unconfined.
pub(super) fn decide(
    filter: &Filter,
    capabilities: &Capabilities,
    privileged: bool,
    vsock: bool,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    match filter {
        Filter::Profile(json) => from_json(json, capabilities).map(Some),
        Filter::Unconfined => Ok(None),
        Filter::Default if privileged => Ok(None),
        Filter::Default => Ok(Some(default_profile(capabilities, vsock))),
    }
}

fn default_profile(capabilities: &Capabilities, vsock: bool) -> LinuxSeccomp {
    let allow = LinuxSeccompAction::ScmpActAllow;
    let mut rules = vec![rule(syscalls::ALWAYS.iter().flat_map(|names| names.split_whitespace()), allow, Vec::new())];
    for (capability, names) in syscalls::WITH_CAPABILITY {
        if capabilities.contains(&capability) {
            rules.push(rule(names.split_whitespace(), allow, Vec::new()));
        }
    }
    let masked = |mask, value| argument(LinuxSeccompOperator::ScmpCmpMaskedEq, mask, Some(value));
    rules.extend(SOCKET_DOMAINS.map(|(mask, value)| rule(["socket"], allow, vec![masked(mask, value)])));
    if vsock {
        rules.push(rule(["socket"], allow, vec![masked(0xffff_ffff, AF_VSOCK)]));
    }
    rules.extend(
        PERSONALITIES.map(|persona| {
            rule(["personality"], allow, vec![argument(LinuxSeccompOperator::ScmpCmpEq, persona, None)])
        }),
    );
    if !capabilities.contains(&Capability::SysAdmin) {
        rules.push(rule(["clone"], allow, vec![masked(CLONE_NAMESPACES, 0)]));
        let mut clone3 = rule(["clone3"], LinuxSeccompAction::ScmpActErrno, Vec::new());
        clone3.set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures()))
        .set_syscalls(Some(rules));
    profile
}

fn rule<'a>(
    names: impl IntoIterator<Item = &'a str>,
    action: LinuxSeccompAction,
    arguments: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect()).set_action(action);
    rule.set_args((!arguments.is_empty()).then_some(arguments));
    rule
}

/// A condition on argument 0. For a masked comparison `value` is the mask. Source: runtime-spec config-linux.md#seccomp.
fn argument(operator: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(0_usize).op(operator).value(value);
    let argument = match value_two {
        Some(second) => argument.value_two(second),
        None => argument,
    };
    argument.build().expect("every field has a default")
}

#[cfg(target_arch = "x86_64")]
fn architectures() -> Vec<Arch> {
    vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
}

#[cfg(target_arch = "aarch64")]
fn architectures() -> Vec<Arch> {
    vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
}

/// The native architecture, in the words Docker's profiles use: libseccomp's and Go's.
#[cfg(target_arch = "x86_64")]
const NATIVE: (Arch, &str) = (Arch::ScmpArchX86_64, "amd64");
/// The native architecture, in the words Docker's profiles use: libseccomp's and Go's.
#[cfg(target_arch = "aarch64")]
const NATIVE: (Arch, &str) = (Arch::ScmpArchAarch64, "arm64");

/// A profile as `--security-opt seccomp=FILE` sends it. Source: docs.docker.com "Seccomp security profiles".
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMapEntry>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    syscalls: Option<Vec<ProfileRule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMapEntry {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<Capability>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    /// Such as `4.8`. Kernels that can run us are newer than any version a profile asks for, so it always holds.
    #[serde(default)]
    min_kernel: Option<String>,
}

impl ProfileRule {
    fn applies(&self, capabilities: &Capabilities) -> bool {
        let included = self.includes.as_ref().is_none_or(|condition| {
            let arches = condition.arches.as_deref().unwrap_or_default();
            (arches.is_empty() || arches.iter().any(|arch| arch == NATIVE.1))
                && condition.caps.iter().flatten().all(|capability| capabilities.contains(capability))
        });
        let excluded = self.excludes.as_ref().is_some_and(|condition| {
            condition.arches.iter().flatten().any(|arch| arch == NATIVE.1)
                || condition.caps.iter().flatten().any(|capability| capabilities.contains(capability))
                || condition.min_kernel.is_some()
        });
        included && !excluded
    }

    fn into_rule(self) -> LinuxSyscall {
        let names = self.names.unwrap_or_default().into_iter().chain((!self.name.is_empty()).then_some(self.name));
        let mut rule = LinuxSyscall::default();
        rule.set_names(names.collect()).set_action(self.action).set_errno_ret(self.errno_ret);
        rule.set_args(self.args.filter(|arguments| !arguments.is_empty()));
        rule
    }
}

/// Reads a profile and keeps the rules that hold for these capabilities on this architecture.
fn from_json(json: &str, capabilities: &Capabilities) -> Result<LinuxSeccomp, SpecError> {
    let invalid = |why: &str| SpecError::Security(format!("decoding seccomp profile failed: {why}"));
    let profile: Profile = serde_json::from_str(json).map_err(|error| invalid(&error.to_string()))?;
    let rules = profile.syscalls.unwrap_or_default();
    if rules.iter().any(|rule| !rule.name.is_empty() && rule.names.as_ref().is_some_and(|names| !names.is_empty())) {
        return Err(invalid("use either 'name' or 'names' in a rule, not both"));
    }
    let architectures = match (profile.architectures, profile.arch_map) {
        (Some(listed), Some(map)) if !listed.is_empty() && !map.is_empty() => {
            return Err(invalid("use either 'architectures' or 'archMap', not both"));
        }
        (Some(listed), _) if !listed.is_empty() => Some(listed),
        (_, map) => map.unwrap_or_default().into_iter().find(|entry| entry.architecture == NATIVE.0).map(|entry| {
            std::iter::once(entry.architecture).chain(entry.sub_architectures.unwrap_or_default()).collect()
        }),
    };
    let mut decided = LinuxSeccomp::default();
    decided
        .set_default_action(profile.default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures(architectures)
        .set_flags(profile.flags.filter(|flags| !flags.is_empty()))
        .set_syscalls(Some(
            rules.into_iter().filter(|rule| rule.applies(capabilities)).map(ProfileRule::into_rule).collect(),
        ));
    Ok(decided)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::capabilities::DEFAULT;

    /// What the profile does with a call whose first argument is `argument`.
    fn answer(profile: &LinuxSeccomp, name: &str, argument: u64) -> LinuxSeccompAction {
        let holds = |condition: &LinuxSeccompArg| match condition.op() {
            LinuxSeccompOperator::ScmpCmpEq => argument == condition.value(),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                argument & condition.value() == condition.value_two().unwrap_or_default()
            }
            other => panic!("{other:?} is not used"),
        };
        profile
            .syscalls()
            .iter()
            .flatten()
            .find(|rule| rule.names().iter().any(|n| n == name) && rule.args().iter().flatten().all(holds))
            .map_or(profile.default_action(), LinuxSyscall::action)
    }

    fn default_for(extra: &[Capability]) -> LinuxSeccomp {
        default_profile(&DEFAULT.into_iter().chain(extra.iter().copied()).collect(), false)
    }

    const ALLOW: LinuxSeccompAction = LinuxSeccompAction::ScmpActAllow;
    const ERRNO: LinuxSeccompAction = LinuxSeccompAction::ScmpActErrno;

    #[test]
    fn dangerous_calls_are_refused_without_their_capability() {
        let profile = default_for(&[]);
        assert_eq!((profile.default_action(), profile.default_errno_ret()), (ERRNO, Some(EPERM)));
        for name in [
            "mount umount2 pivot_root open_tree move_mount fsopen mount_setattr setns unshare clone3 bpf",
            "perf_event_open kexec_load kexec_file_load init_module finit_module delete_module create_module",
            "keyctl add_key request_key userfaultfd io_uring_setup io_uring_enter io_uring_register reboot swapon",
            "swapoff open_by_handle_at acct settimeofday clock_settime stime iopl ioperm sethostname setdomainname",
            "lookup_dcookie quotactl nfsservctl _sysctl sysfs uselib ustat vm86 vm86old vhangup kcmp pidfd_getfd",
            "process_madvise syslog mbind move_pages migrate_pages set_mempolicy get_mempolicy fanotify_init",
            "statmount listmount",
        ]
        .iter()
        .flat_map(|line| line.split_whitespace())
        {
            assert_eq!(answer(&profile, name, 0), ERRNO, "{name}");
        }
    }

    #[test]
    fn ordinary_programs_run() {
        let profile = default_for(&[]);
        for name in ["read", "execve", "openat", "mmap", "futex", "exit_group", "chroot", "ptrace", "rseq", "statx"] {
            assert_eq!(answer(&profile, name, 0), ALLOW, "{name}");
        }
    }

    #[test]
    fn clone_makes_threads_and_processes_but_no_namespaces() {
        let profile = default_for(&[]);
        assert_eq!(answer(&profile, "clone", 0x003d_0f00), ALLOW);
        for flag in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            assert_eq!(answer(&profile, "clone", flag | 17), ERRNO, "{flag:#x}");
        }
        let clone3 = profile.syscalls().iter().flatten().find(|rule| rule.names() == &["clone3"]).unwrap();
        assert_eq!(clone3.errno_ret(), Some(ENOSYS));
        assert_eq!(answer(&default_for(&[Capability::SysAdmin]), "clone", 0x1000_0000), ALLOW);
    }

    #[test]
    fn alg_and_vsock_sockets_cannot_be_made_even_with_high_bits() {
        let profile = default_for(&[]);
        for domain in 0..=46u64 {
            let expected = if domain == 38 || domain == 40 { ERRNO } else { ALLOW };
            assert_eq!(answer(&profile, "socket", domain), expected, "{domain}");
            assert_eq!(answer(&profile, "socket", domain | 0xffff_ffff_0000_0000), expected, "{domain} with high bits");
        }
    }

    #[test]
    fn a_container_with_a_vsock_can_make_its_sockets() {
        let profile = default_profile(&DEFAULT.into_iter().collect(), true);
        assert_eq!([38, 40].map(|domain| answer(&profile, "socket", domain)), [ERRNO, ALLOW]);
    }

    #[test]
    fn personality_cannot_switch_off_randomization() {
        let profile = default_for(&[]);
        assert_eq!(answer(&profile, "personality", 0xffff_ffff), ALLOW);
        assert_eq!(answer(&profile, "personality", 0x0004_0000), ERRNO);
    }

    #[test]
    fn a_capability_opens_its_calls_and_no_others() {
        let profile = default_for(&[Capability::SysTime]);
        assert_eq!(answer(&profile, "clock_settime", 0), ALLOW);
        assert_eq!(answer(&profile, "mount", 0), ERRNO);
        assert_eq!(answer(&default_for(&[Capability::SysAdmin]), "mount", 0), ALLOW);
    }

    #[test]
    fn privileged_and_unconfined_have_no_filter() {
        let capabilities = DEFAULT.into_iter().collect();
        assert!(decide(&Filter::Default, &capabilities, true, false).unwrap().is_none());
        assert!(decide(&Filter::Unconfined, &capabilities, false, false).unwrap().is_none());
        assert!(decide(&Filter::Default, &capabilities, false, false).unwrap().is_some());
    }

    #[test]
    fn a_profile_in_dockers_format_is_evaluated() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
            "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW","args":[],"includes":{},"excludes":{}},
                        {"name":"mount","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                        {"names":["chroot"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_CHROOT"]}},
                        {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
                        {"names":["s390_pci_mmio_read"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}}]}"#;
        let profile = from_json(json, &DEFAULT.into_iter().collect()).unwrap();
        assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
        for (name, expected) in
            [("read", ALLOW), ("mount", ERRNO), ("chroot", ERRNO), ("ptrace", ALLOW), ("s390_pci_mmio_read", ERRNO)]
        {
            assert_eq!(answer(&profile, name, 0), expected, "{name}");
        }
        assert!(from_json("{", &Capabilities::new()).is_err());
        assert!(from_json(r#"{"syscalls":[]}"#, &Capabilities::new()).is_err());
    }
}
