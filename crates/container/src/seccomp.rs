//! Seccomp profiles as programs that the kernel takes.
//!
//! Compiling a profile is the larger part of setting a small container up: libseccomp sorts hundreds of rules for each
//! architecture. So it is done once, by whoever has the specification, which for a utility VM is the host; the container's
//! processes only load what came of it.
//!
//! Source: runtime-spec config-linux.md#seccomp; `seccomp(2)`; `seccomp_rule_add(3)`, `seccomp_export_bpf(3)`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::spec::SpecError;
use crate::sys;

/// Bytes of one instruction (`struct sock_filter`).
const INSTRUCTION_BYTES: usize = 8;
/// Most instructions of a program. Source: linux/bpf_common.h, `BPF_MAXINSNS`.
const MOST_INSTRUCTIONS: usize = 4096;
/// Flags of `seccomp(2)`. Source: linux/seccomp.h.
const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    flags: u32,
    /// Instructions, each 8 bytes in the machine's order.
    program: Vec<u8>,
}

impl Filter {
    /// Compiles a profile for the architecture that this program runs on. Takes some milliseconds.
    ///
    /// # Errors
    /// [`SpecError::Invalid`] for what libseccomp refuses; [`SpecError::Unsupported`] for a profile with a listener.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Self, SpecError> {
        refuse_listeners(profile)?;
        let context = context(profile).map_err(|error| SpecError::Invalid(format!("seccomp profile: {error}")))?;
        let exported = export(&context).map_err(|error| SpecError::Invalid(format!("seccomp profile: {error}")))?;
        let filter = Self { flags: flags(profile), program: exported };
        filter.check().map_err(SpecError::Invalid)?;
        Ok(filter)
    }

    /// The filter as bytes, for another process or machine of the same architecture.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.flags.to_le_bytes().as_slice(), &self.program].concat()
    }

    /// Takes what [`Filter::to_bytes`] gave.
    ///
    /// # Errors
    /// [`SpecError::Invalid`] for bytes that can be no program. Whether it is a sound one is for the kernel to say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SpecError> {
        let cut_off = || SpecError::Invalid("a seccomp program that is cut off".to_owned());
        let (flags, program) = bytes.split_first_chunk().ok_or_else(cut_off)?;
        let filter = Self { flags: u32::from_le_bytes(*flags), program: program.to_vec() };
        filter.check().map_err(SpecError::Invalid)?;
        Ok(filter)
    }

    /// Puts this process, and all that it executes, behind the filter for good. When: with `CAP_SYS_ADMIN` or no_new_privs.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn load(&self) -> io::Result<()> {
        let (instructions, _) = self.program.as_chunks::<INSTRUCTION_BYTES>();
        let instructions: Vec<u64> = instructions.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        sys::load_seccomp_filter(&instructions, self.flags)
    }

    fn check(&self) -> Result<(), String> {
        let known = FLAG_TSYNC | FLAG_LOG | FLAG_SPEC_ALLOW;
        if self.flags & !known != 0 {
            return Err(format!("unknown seccomp flags {:#x}", self.flags));
        }
        let instructions = self.program.len() / INSTRUCTION_BYTES;
        if !self.program.len().is_multiple_of(INSTRUCTION_BYTES) || !(1..=MOST_INSTRUCTIONS).contains(&instructions) {
            return Err(format!(
                "a seccomp program of {} bytes: the kernel takes 1 to {MOST_INSTRUCTIONS} instructions",
                self.program.len()
            ));
        }
        Ok(())
    }
}

/// The descriptor of a listener would have to go to an agent that the profile names.
fn refuse_listeners(profile: &LinuxSeccomp) -> Result<(), SpecError> {
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().iter().flatten();
    if notifies(profile.default_action()) || rules.into_iter().any(|rule| notifies(rule.action())) {
        return Err(SpecError::Unsupported("seccomp listeners are"));
    }
    Ok(())
}

fn flags(profile: &LinuxSeccomp) -> u32 {
    let of = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
        // It changes how long a listener's question lasts, and there is no listener.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    profile.flags().iter().flatten().map(of).fold(0, std::ops::BitOr::bitor)
}

fn context(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default)?;
    for &architecture in profile.architectures().iter().flatten() {
        context.add_arch(arch(architecture))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let wanted = action(rule.action(), rule.errno_ret());
        // libseccomp refuses a rule that says what holds anyway.
        if wanted != default {
            add(&mut context, rule, wanted)?;
        }
    }
    Ok(context)
}

fn add(context: &mut ScmpFilterContext, rule: &LinuxSyscall, wanted: ScmpAction) -> Result<(), SeccompError> {
    let comparisons: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(compare).collect();
    let mut seen = HashSet::new();
    let distinct = rule.args().iter().flatten().all(|argument| seen.insert(argument.index()));
    for name in rule.names() {
        // A name that this libseccomp does not know is one of a newer kernel's, or of another architecture's.
        let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
        if comparisons.is_empty() {
            context.add_rule(wanted, syscall)?;
        } else if distinct {
            context.add_rule_conditional(wanted, syscall, &comparisons)?;
        } else {
            // Several conditions on one argument: any of them is enough, as in runc.
            for comparison in &comparisons {
                context.add_rule_conditional(wanted, syscall, std::slice::from_ref(comparison))?;
            }
        }
    }
    Ok(())
}

/// A masked comparison has its mask first and the value to find behind the mask second.
fn compare(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    let value = argument.value();
    let operator = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            return ScmpArgCompare::new(index, ScmpCompareOp::MaskedEqual(value), argument.value_two().unwrap_or(0));
        }
    };
    ScmpArgCompare::new(index, operator, value)
}

fn action(action: LinuxSeccompAction, number: Option<u32>) -> ScmpAction {
    let errno = number.and_then(|number| i32::try_from(number).ok()).unwrap_or(libc::EPERM);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(u16::MAX)),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
    }
}

fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut file = File::from(memfd_create("seccomp", MemfdFlags::CLOEXEC)?);
    context.export_bpf(&file)?;
    file.rewind()?;
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn profile(value: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_profile_is_a_program_that_survives_the_way() {
        let filter = Filter::compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}
            ]
        })))
        .unwrap();
        assert_eq!(filter.flags, FLAG_LOG);
        assert_eq!(Filter::from_bytes(&filter.to_bytes()).unwrap(), filter);
    }

    #[test]
    fn what_can_be_no_program_is_refused() {
        let whole = 8 * (MOST_INSTRUCTIONS + 1) + 4;
        for bytes in [&[][..], &[0; 3], &[0; 4], &[0; 11], &vec![0; whole], &[8, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(matches!(Filter::from_bytes(bytes), Err(SpecError::Invalid(_))), "{} bytes", bytes.len());
        }
    }

    #[test]
    fn listeners_are_refused() {
        for value in [
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
        ] {
            assert!(matches!(Filter::compile(&profile(value)), Err(SpecError::Unsupported(_))));
        }
    }
}
