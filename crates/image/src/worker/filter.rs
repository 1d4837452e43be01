//! The system calls that a worker may make: read, write, memory, end. Any other ends it.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::jail::JailError;

/// Allowed whatever their arguments: none of them names a file, a process or an address of the network.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    // abort(3) and panic messages ask who they are.
    libc::SYS_rt_sigprocmask,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Filters this thread's system calls from now on. When: no_new_privs is set.
pub(super) fn install() -> Result<(), JailError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Memory, but never code.
    let not_executable = condition(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC.unsigned_abs().into()), 0)?;
    rules.insert(libc::SYS_mmap, vec![rule(vec![not_executable])?]);
    // abort(3) sends itself the one signal.
    let itself = condition(0, SeccompCmpOp::Eq, std::process::id().into())?;
    let abort = condition(2, SeccompCmpOp::Eq, libc::SIGABRT.unsigned_abs().into())?;
    rules.insert(libc::SYS_tgkill, vec![rule(vec![itself, abort])?]);
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)
        .map_err(seccompiler::Error::Backend)?;
    let program: BpfProgram = filter.try_into().map_err(seccompiler::Error::Backend)?;
    Ok(apply_filter(&program)?)
}

fn condition(argument: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompCondition, JailError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value);
    Ok(condition.map_err(seccompiler::Error::Backend)?)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, JailError> {
    Ok(SeccompRule::new(conditions).map_err(seccompiler::Error::Backend)?)
}
