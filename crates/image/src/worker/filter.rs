//! The system calls that a worker may make: read, write, memory, end. Any other ends it.

use ::jail::{Filter, JailError};

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
    Filter::allowing(ALLOWED.iter().copied())
        .memory_without_code(&[libc::SYS_mmap])?
        .signals_to_itself(&[libc::SIGABRT])?
        .install()
}
