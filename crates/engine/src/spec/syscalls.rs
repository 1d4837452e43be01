//! The names in the default system call filter, by what they need.
//!
//! The list is an allow list: what is not here is answered with EPERM. It follows Docker's default profile (moby
//! `profiles/seccomp`, state of 2026) and is never wider: where a newer call is allowed there only in some releases, it
//! is kept behind `CAP_SYS_ADMIN` here. Names that an architecture does not have are skipped when the filter is built.

use oci_spec::runtime::Capability;

/// Files and file systems, as far as the process's own credentials reach.
const FILES: &str = "
    access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat
    listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat
    name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
    readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr
    setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate
    truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev";

/// Processes, threads, signals, waiting, credentials (each checked by the kernel against the capabilities).
const PROCESSES: &str = "
    alarm capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv
    futex_wake getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpgid
    getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage
    getsid get_thread_area gettid getuid getuid32 ioprio_get ioprio_set kill membarrier pause pidfd_open
    pidfd_send_signal prctl prlimit64 process_mrelease restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
    setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
    setrlimit set_robust_list setsid set_thread_area set_tid_address setuid setuid32 sigaltstack signalfd signalfd4
    sigprocmask sigreturn tgkill tkill ugetrlimit uretprobe vfork wait4 waitid waitpid";

/// Memory.
const MEMORY: &str = "
    brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap
    mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages";

/// Sockets (`socket` itself is filtered by its domain), pipes, polling, System V and POSIX queues, the old asynchronous I/O.
const COMMUNICATION: &str = "
    accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 getpeername getsockname getsockopt io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit ipc listen mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd _newselect pipe pipe2
    poll ppoll ppoll_time64 pselect6 pselect6_time64 recv recvfrom recvmmsg recvmmsg_time64 recvmsg select semctl
    semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget
    shutdown socketcall socketpair";

/// Time (setting it needs `CAP_SYS_TIME` in the kernel as well), the system's name, landlock, the process's own filter.
const SYSTEM: &str = "
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getrandom gettimeofday landlock_add_rule landlock_create_ruleset
    landlock_restrict_self nanosleep seccomp sysinfo time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times uname";

/// Tracing within the container. Docker allows it from Linux 4.8 on, where a tracer can no longer change a call behind
/// the filter's back; EROFS, without which no container of ours runs, needs a newer kernel than that.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// Only where the processor knows them.
#[cfg(target_arch = "x86_64")]
const NATIVE: &str = "arch_prctl modify_ldt";
/// Only where the processor knows them.
#[cfg(target_arch = "aarch64")]
const NATIVE: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// All that every container may call whatever its arguments.
pub(super) const ALWAYS: [&str; 7] = [FILES, PROCESSES, MEMORY, COMMUNICATION, SYSTEM, TRACING, NATIVE];

/// What a capability adds.
pub(super) const WITH_CAPABILITY: [(Capability, &str); 14] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie lsm_get_self_attr
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open
         quotactl quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];
