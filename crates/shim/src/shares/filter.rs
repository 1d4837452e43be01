//! The system calls of a process that serves a share; all others are refused.

use std::collections::BTreeMap;

use libc as c;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Reading and writing of open files.
const CONTENT: [i64; 19] = [
    c::SYS_read,
    c::SYS_write,
    c::SYS_readv,
    c::SYS_writev,
    c::SYS_pread64,
    c::SYS_pwrite64,
    c::SYS_preadv,
    c::SYS_pwritev,
    c::SYS_preadv2,
    c::SYS_pwritev2,
    c::SYS_lseek,
    c::SYS_ftruncate,
    c::SYS_fallocate,
    c::SYS_copy_file_range,
    c::SYS_fsync,
    c::SYS_fdatasync,
    c::SYS_getdents64,
    c::SYS_close,
    c::SYS_dup,
];

/// Looking at names and changing them.
const NAMES: [i64; 33] = [
    c::SYS_openat,
    c::SYS_openat2,
    c::SYS_open,
    c::SYS_fstat,
    c::SYS_newfstatat,
    c::SYS_statx,
    c::SYS_fstatfs,
    c::SYS_faccessat,
    c::SYS_faccessat2,
    c::SYS_readlinkat,
    c::SYS_mkdirat,
    c::SYS_mknodat,
    c::SYS_symlinkat,
    c::SYS_linkat,
    c::SYS_unlinkat,
    c::SYS_renameat,
    c::SYS_renameat2,
    c::SYS_fchmod,
    c::SYS_fchmodat,
    c::SYS_fchown,
    c::SYS_fchownat,
    c::SYS_utimensat,
    c::SYS_umask,
    c::SYS_getxattr,
    c::SYS_setxattr,
    c::SYS_listxattr,
    c::SYS_removexattr,
    c::SYS_fgetxattr,
    c::SYS_fsetxattr,
    c::SYS_flistxattr,
    c::SYS_fremovexattr,
    c::SYS_fcntl,
    c::SYS_name_to_handle_at,
];

/// Memory, identity, and the end.
const OWN: [i64; 29] = [
    c::SYS_brk,
    c::SYS_mmap,
    c::SYS_munmap,
    c::SYS_mremap,
    c::SYS_mprotect,
    c::SYS_madvise,
    c::SYS_futex,
    c::SYS_setresuid,
    c::SYS_setresgid,
    c::SYS_getuid,
    c::SYS_geteuid,
    c::SYS_getgid,
    c::SYS_getegid,
    c::SYS_setgroups,
    c::SYS_capget,
    c::SYS_capset,
    c::SYS_prctl,
    c::SYS_getrandom,
    c::SYS_clock_gettime,
    c::SYS_gettid,
    c::SYS_getpid,
    c::SYS_sched_yield,
    c::SYS_sigaltstack,
    c::SYS_rt_sigaction,
    c::SYS_rt_sigprocmask,
    c::SYS_rt_sigreturn,
    c::SYS_restart_syscall,
    c::SYS_exit,
    c::SYS_exit_group,
];

/// Installs the filter. It cannot be taken back.
///
/// # Errors
/// The kernel does not take it.
pub(super) fn install() -> anyhow::Result<()> {
    let rules: BTreeMap<i64, Vec<_>> =
        CONTENT.iter().chain(&NAMES).chain(&OWN).map(|call| (*call, Vec::new())).collect();
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    // Refused, not killed: one wrong word of the guest must not cost the container its files.
    let refuse = SeccompAction::Errno(c::EPERM.unsigned_abs());
    let program: BpfProgram = SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()?;
    Ok(apply_filter(&program)?)
}
