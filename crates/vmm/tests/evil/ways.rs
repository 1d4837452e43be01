//! Ways out, one system call each.

use crate::inside::Means;
use crate::sys::call;

/// One try.
pub type Try = fn(&mut Means) -> Result<i64, i32>;

/// The folder that relative paths begin at, as the register holds it.
const HERE: u64 = (libc::AT_FDCWD as i64).cast_unsigned();

/// An address that is none in the other process would be found only by who may look there.
fn reached_at_all(result: Result<i64, i32>) -> Result<i64, i32> {
    result.or_else(|error| if error == libc::EFAULT { Ok(0) } else { Err(error) })
}

/// Ways that only the filter closes. Each makes something of the process's own (a child, a socket in a network without any device, a file
/// in memory), or changes itself; none reaches anything of the host's or of another process.
pub const ONLY_FILTERED: &[&str] = &[
    "socket unix",
    "socket inet",
    "socket inet6",
    "socket netlink",
    "socket packet",
    "socket vsock",
    "socket alg",
    "socketpair",
    "listen for strangers",
    "fork",
    "vfork",
    "clone",
    "a user namespace",
    "memfd_create",
    "memfd_secret",
    "io_uring",
    "userfaultfd",
    "keyctl",
    "add_key",
    "shmget",
    "mq_open",
    "executable memory",
    "memory made executable",
    "outlive its maker",
    "dumpable again",
    "a landlock ruleset of its own",
    "modify_ldt",
    "a disk as code",
    "ioctl SIOCGIFCONF",
];

/// All ways.
pub const WAYS: &[(&str, Try)] = &[
    // Files.
    ("open", |m| call(libc::SYS_open, [m.path(), 0, 0, 0, 0, 0])),
    ("openat", |m| call(libc::SYS_openat, [HERE, m.path(), 0, 0, 0, 0])),
    ("openat2", |m| call(libc::SYS_openat2, [HERE, m.path(), m.content(&[0; 24]), 24, 0, 0])),
    ("open to write", |m| call(libc::SYS_openat, [HERE, m.path(), 2, 0, 0, 0])),
    ("open /proc/1/mem", |m| call(libc::SYS_openat, [HERE, m.process_1(), 0, 0, 0, 0])),
    ("open /", |m| call(libc::SYS_openat, [HERE, m.content(b"/\0"), 0o200_000, 0, 0, 0])),
    ("open /..", |m| call(libc::SYS_openat, [HERE, m.content(b"/../../etc/passwd\0"), 0, 0, 0, 0])),
    ("open /dev/kvm", |m| call(libc::SYS_openat, [HERE, m.content(b"/dev/kvm\0"), 2, 0, 0, 0])),
    ("open /sys", |m| call(libc::SYS_openat, [HERE, m.content(b"/sys/kernel\0"), 0, 0, 0, 0])),
    ("open its own descriptors", |m| call(libc::SYS_openat, [HERE, m.content(b"/proc/self/fd/0\0"), 2, 0, 0, 0])),
    ("open the disk again", |m| call(libc::SYS_openat, [m.disk, m.content(b"\0"), 2, 0, 0, 0])),
    ("creat", |m| call(libc::SYS_creat, [m.content(b"/here\0"), 0o600, 0, 0, 0, 0])),
    ("a nameless file", |m| call(libc::SYS_openat, [HERE, m.content(b"/\0"), 0o20_200_002, 0o600, 0, 0])),
    ("open_tree", |m| call(libc::SYS_open_tree, [HERE, m.path(), 0, 0, 0, 0])),
    ("open_by_handle_at", |m| call(libc::SYS_open_by_handle_at, [m.disk, m.content(&[8, 0, 0, 0, 1]), 0, 0, 0, 0])),
    ("name_to_handle_at", |m| call(libc::SYS_name_to_handle_at, [HERE, m.path(), m.content(&[64]), m.parent, 0, 0])),
    ("stat", |m| call(libc::SYS_newfstatat, [HERE, m.path(), m.buffer(), 0, 0, 0])),
    ("statx", |m| call(libc::SYS_statx, [HERE, m.path(), 0, 0x7ff, m.buffer(), 0])),
    ("access", |m| call(libc::SYS_access, [m.path(), 0, 0, 0, 0, 0])),
    ("readlink", |m| call(libc::SYS_readlink, [m.content(b"/proc/self/exe\0"), m.path(), 100, 0, 0, 0])),
    ("getdents", |m| call(libc::SYS_getdents64, [0, m.buffer(), 1000, 0, 0, 0])),
    ("unlink", |m| call(libc::SYS_unlink, [m.path(), 0, 0, 0, 0, 0])),
    ("rename", |m| call(libc::SYS_rename, [m.path(), m.path(), 0, 0, 0, 0])),
    ("link", |m| call(libc::SYS_link, [m.path(), m.path(), 0, 0, 0, 0])),
    ("symlink", |m| call(libc::SYS_symlink, [m.path(), m.content(b"/link\0"), 0, 0, 0, 0])),
    ("mkdir", |m| call(libc::SYS_mkdir, [m.content(b"/folder\0"), 0o700, 0, 0, 0, 0])),
    ("mknod", |m| call(libc::SYS_mknod, [m.content(b"/memory\0"), 0o20_600, 0x101, 0, 0, 0])),
    ("chmod", |m| call(libc::SYS_chmod, [m.path(), 0o777, 0, 0, 0, 0])),
    ("fchmod the disk", |m| call(libc::SYS_fchmod, [m.disk, 0o4777, 0, 0, 0, 0])),
    ("chown", |m| call(libc::SYS_chown, [m.path(), 0, 0, 0, 0, 0])),
    ("fchown the disk", |m| call(libc::SYS_fchown, [m.disk, 1, 1, 0, 0, 0])),
    ("setxattr", |m| call(libc::SYS_setxattr, [m.path(), m.path(), m.path(), 1, 0, 0])),
    ("truncate", |m| call(libc::SYS_truncate, [m.path(), 0, 0, 0, 0, 0])),
    ("cut a disk that is read-only", |m| call(libc::SYS_ftruncate, [m.disk, 0, 0, 0, 0, 0])),
    ("write a disk that is read-only", |m| call(libc::SYS_pwrite64, [m.disk, m.buffer(), 6, 0, 0, 0])),
    ("discard a disk that is read-only", |m| call(libc::SYS_fallocate, [m.disk, 3, 0, 6, 0, 0])),
    ("write sealed memory", |m| call(libc::SYS_pwrite64, [m.memory, m.buffer(), 6, 0, 0, 0])),
    ("map sealed memory to write", |m| call(libc::SYS_mmap, [0, 4096, 3, 1, m.memory, 0])),
    ("map a read-only disk to write", |m| call(libc::SYS_mmap, [0, 4096, 3, 1, m.disk, 0])),
    ("chroot", |m| call(libc::SYS_chroot, [m.content(b"/\0"), 0, 0, 0, 0, 0])),
    ("fchdir", |m| call(libc::SYS_fchdir, [m.disk, 0, 0, 0, 0, 0])),
    ("fanotify", |_| call(libc::SYS_fanotify_init, [0; 6])),
    ("a leased file", |m| call(libc::SYS_fcntl, [m.disk, 1024, 1, 0, 0, 0])),
    ("quotactl", |m| call(libc::SYS_quotactl, [0x80_0002 << 8, m.path(), 0, m.buffer(), 0, 0])),
    ("swapon", |m| call(libc::SYS_swapon, [m.path(), 0, 0, 0, 0, 0])),
    ("acct", |m| call(libc::SYS_acct, [m.path(), 0, 0, 0, 0, 0])),
    // Mounts.
    ("mount", |m| call(libc::SYS_mount, [m.content(b"tmpfs\0"), m.path(), m.buffer(), 0, 0, 0])),
    ("mount a procfs", |m| call(libc::SYS_mount, [0, m.content(b"/\0\0\0proc\0"), m.buffer() + 4, 0, 0, 0])),
    ("remount the root", |m| call(libc::SYS_mount, [0, m.content(b"/\0"), 0, 0x20, 0, 0])),
    ("umount", |m| call(libc::SYS_umount2, [m.content(b"/\0"), 2, 0, 0, 0, 0])),
    ("fsopen", |m| call(libc::SYS_fsopen, [m.content(b"proc\0"), 0, 0, 0, 0, 0])),
    ("fspick", |m| call(libc::SYS_fspick, [HERE, m.content(b"/\0"), 0, 0, 0, 0])),
    ("move_mount", |m| call(libc::SYS_move_mount, [m.disk, m.content(b"\0/\0"), HERE, m.buffer() + 1, 4, 0])),
    ("mount_setattr", |m| call(libc::SYS_mount_setattr, [HERE, m.content(b"/\0"), 0, m.path(), 32, 0])),
    ("pivot_root", |m| call(libc::SYS_pivot_root, [m.content(b"/\0"), m.buffer(), 0, 0, 0, 0])),
    // Sockets.
    ("socket unix", |_| call(libc::SYS_socket, [1, 1, 0, 0, 0, 0])),
    ("socket inet", |_| call(libc::SYS_socket, [2, 1, 0, 0, 0, 0])),
    ("socket inet6", |_| call(libc::SYS_socket, [10, 1, 0, 0, 0, 0])),
    ("socket raw", |_| call(libc::SYS_socket, [2, 3, 1, 0, 0, 0])),
    ("socket packet", |_| call(libc::SYS_socket, [17, 3, 0, 0, 0, 0])),
    ("socket netlink", |_| call(libc::SYS_socket, [16, 3, 0, 0, 0, 0])),
    ("socket vsock", |_| call(libc::SYS_socket, [40, 1, 0, 0, 0, 0])),
    ("socket alg", |_| call(libc::SYS_socket, [38, 5, 0, 0, 0, 0])),
    ("socket bluetooth", |_| call(libc::SYS_socket, [31, 3, 1, 0, 0, 0])),
    ("socketpair", |m| call(libc::SYS_socketpair, [1, 1, 0, m.buffer(), 0, 0])),
    ("connect", |m| call(libc::SYS_connect, [m.control, m.content(&[1, 0, 0, b'a']), 4, 0, 0, 0])),
    ("bind", |m| call(libc::SYS_bind, [m.control, m.content(&[1, 0, b'/', b'a', 0]), 5, 0, 0, 0])),
    ("listen for strangers", |m| call(libc::SYS_listen, [m.control, 1, 0, 0, 0, 0])),
    ("accept", |m| call(libc::SYS_accept4, [m.control, 0, 0, 0, 0, 0])),
    ("send to another address", |m| {
        let address = m.content(&[1, 0, 0, b'/', b't', b'm', b'p']);
        call(libc::SYS_sendto, [m.disk, address, 1, 0, address, 7])
    }),
    ("send a message to another address", |m| {
        let address = m.content(&[1, 0, b'/', b't', b'm', b'p', 0]);
        // Source: struct msghdr; behind the address, since the kernel takes as much of that as it is told.
        let header = [address, 7, 0, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
        let header = m.content(&[&[1, 0, b'/', b't', b'm', b'p', 0, 0][..], &header].concat()) + 8;
        call(libc::SYS_sendmsg, [m.disk, header, 0, 0, 0, 0])
    }),
    ("a socket's option", |m| call(libc::SYS_setsockopt, [m.control, 1, 36, m.buffer(), 4, 0])),
    // Processes.
    ("execve", |m| call(libc::SYS_execve, [m.program(), 0, 0, 0, 0, 0])),
    ("execve itself", |m| call(libc::SYS_execve, [m.content(b"/proc/self/exe\0"), 0, 0, 0, 0, 0])),
    ("execveat a descriptor", |m| call(libc::SYS_execveat, [m.disk, m.content(b"\0"), 0, 0, 0x1000, 0])),
    ("execveat memory", |m| call(libc::SYS_execveat, [m.memory, m.content(b"\0"), 0, 0, 0x1000, 0])),
    ("fork", |_| call(libc::SYS_fork, [0; 6])),
    ("vfork", |_| call(libc::SYS_vfork, [0; 6])),
    ("clone", |_| call(libc::SYS_clone, [17, 0, 0, 0, 0, 0])),
    ("clone3", |m| call(libc::SYS_clone3, [m.content(&[0; 88]), 8, 0, 0, 0, 0])),
    ("ptrace", |m| call(libc::SYS_ptrace, [16, m.parent, 0, 0, 0, 0])),
    ("ptrace process 1", |_| call(libc::SYS_ptrace, [0x4206, 1, 0, 0, 0, 0])),
    ("process_vm_readv", |m| {
        let piece = m.piece();
        reached_at_all(call(libc::SYS_process_vm_readv, [m.parent, piece, 1, piece, 1, 0]))
    }),
    ("process_vm_writev", |m| {
        let piece = m.piece();
        reached_at_all(call(libc::SYS_process_vm_writev, [m.parent, piece, 1, piece, 1, 0]))
    }),
    ("process_madvise", |m| call(libc::SYS_process_madvise, [m.disk, m.buffer(), 1, 21, 0, 0])),
    ("kcmp", |m| call(libc::SYS_kcmp, [m.parent, 1, 0, 0, 0, 0])),
    ("kill its maker", |m| call(libc::SYS_kill, [m.parent, 9, 0, 0, 0, 0])),
    ("kill process 1", |_| call(libc::SYS_kill, [1, 9, 0, 0, 0, 0])),
    ("tgkill its maker", |m| call(libc::SYS_tgkill, [m.parent, m.parent, 6, 0, 0, 0])),
    ("tkill its maker", |m| call(libc::SYS_tkill, [m.parent, 9, 0, 0, 0, 0])),
    ("a signal with a value", |m| call(libc::SYS_rt_sigqueueinfo, [m.parent, 9, m.content(&[0; 128]), 0, 0, 0])),
    ("pidfd of its maker", |m| {
        call(libc::SYS_pidfd_open, [m.parent, 0, 0, 0, 0, 0])
            .and_then(|pidfd| call(libc::SYS_pidfd_getfd, [pidfd.cast_unsigned(), 0, 0, 0, 0, 0]))
    }),
    ("setpriority of its maker", |m| call(libc::SYS_setpriority, [0, m.parent, 5, 0, 0, 0])),
    ("another's limits", |m| call(libc::SYS_prlimit64, [m.parent, 7, 0, m.buffer(), 0, 0])),
    ("another's affinity", |m| call(libc::SYS_sched_setaffinity, [m.parent, 8, m.content(&[1]), 0, 0, 0])),
    ("real-time scheduling", |m| call(libc::SYS_sched_setscheduler, [0, 1, m.content(&[1, 0, 0, 0]), 0, 0, 0])),
    ("move another's pages", |m| call(libc::SYS_move_pages, [m.parent, 0, 0, 0, 0, 0])),
    ("another's robust list", |m| call(libc::SYS_get_robust_list, [m.parent, m.buffer(), m.buffer() + 8, 0, 0, 0])),
    // Namespaces, users, capabilities.
    ("a user namespace", |_| call(libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0])),
    ("a mount namespace", |_| call(libc::SYS_unshare, [0x2_0000, 0, 0, 0, 0, 0])),
    ("a network namespace", |_| call(libc::SYS_unshare, [0x4000_0000, 0, 0, 0, 0, 0])),
    ("a process namespace", |_| call(libc::SYS_unshare, [0x2000_0000, 0, 0, 0, 0, 0])),
    ("a cgroup namespace", |_| call(libc::SYS_unshare, [0x200_0000, 0, 0, 0, 0, 0])),
    ("setns", |m| call(libc::SYS_setns, [m.disk, 0, 0, 0, 0, 0])),
    ("setuid", |_| call(libc::SYS_setuid, [0; 6])),
    ("setresuid", |_| call(libc::SYS_setresuid, [0; 6])),
    ("setresgid", |_| call(libc::SYS_setresgid, [0; 6])),
    ("setgroups", |m| call(libc::SYS_setgroups, [1, m.content(&[0; 4]), 0, 0, 0, 0])),
    ("setfsuid and open", |m| {
        call(libc::SYS_setfsuid, [0; 6])?;
        call(libc::SYS_openat, [HERE, m.process_1(), 0, 0, 0, 0])
    }),
    ("capset", |m| {
        let head = m.content(&[0x22, 0x05, 0x08, 0x20, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]);
        call(libc::SYS_capset, [head, head + 8, 0, 0, 0, 0])
    }),
    ("an ambient capability", |_| call(libc::SYS_prctl, [47, 2, 21, 0, 0, 0])),
    ("new privileges again", |_| call(libc::SYS_prctl, [38, 0, 0, 0, 0, 0])),
    ("dumpable again", |_| call(libc::SYS_prctl, [4, 1, 0, 0, 0, 0])),
    ("outlive its maker", |_| call(libc::SYS_prctl, [1, 0, 0, 0, 0, 0])),
    ("let itself be traced", |m| call(libc::SYS_prctl, [0x5961_6d61, m.parent, 0, 0, 0, 0])),
    ("raise a limit", |m| call(libc::SYS_prlimit64, [0, 7, m.content(&[0xff; 16]), 0, 0, 0])),
    // The kernel's larger doors.
    ("io_uring", |m| call(libc::SYS_io_uring_setup, [8, m.content(&[0; 120]), 0, 0, 0, 0])),
    ("bpf", |m| call(libc::SYS_bpf, [0, m.content(&[1, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0, 1]), 48, 0, 0, 0])),
    ("perf_event_open", |m| {
        call(libc::SYS_perf_event_open, [m.content(&[0; 112]), m.parent, u64::MAX, u64::MAX, 0, 0])
    }),
    ("userfaultfd", |_| call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0])),
    ("memfd_create", |m| call(libc::SYS_memfd_create, [m.content(b"code\0"), 0, 0, 0, 0, 0])),
    ("memfd_secret", |_| call(libc::SYS_memfd_secret, [0; 6])),
    ("keyctl", |_| call(libc::SYS_keyctl, [0, (-3_i64).cast_unsigned(), 1, 0, 0, 0])),
    ("add_key", |m| {
        let words = m.content(b"user\0name\0x");
        call(libc::SYS_add_key, [words, words + 5, words + 10, 1, (-2_i64).cast_unsigned(), 0])
    }),
    ("kexec", |_| call(libc::SYS_kexec_load, [0; 6])),
    ("kexec a file", |m| call(libc::SYS_kexec_file_load, [m.disk, m.disk, 0, 0, 0, 0])),
    ("a kernel module", |m| call(libc::SYS_init_module, [m.buffer(), 64, m.path(), 0, 0, 0])),
    ("a kernel module from a file", |m| call(libc::SYS_finit_module, [m.disk, m.path(), 0, 0, 0, 0])),
    ("unload a module", |m| call(libc::SYS_delete_module, [m.content(b"kvm\0"), 0o4000, 0, 0, 0, 0])),
    ("reboot", |_| call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0, 0, 0])),
    ("the kernel's log", |m| call(libc::SYS_syslog, [3, m.buffer(), 100, 0, 0, 0])),
    ("iopl", |_| call(libc::SYS_iopl, [3, 0, 0, 0, 0, 0])),
    ("ioperm", |_| call(libc::SYS_ioperm, [0x70, 1, 1, 0, 0, 0])),
    ("modify_ldt", |m| call(libc::SYS_modify_ldt, [1, m.content(&[0; 16]), 16, 0, 0, 0])),
    ("clock_settime", |m| call(libc::SYS_clock_settime, [0, m.content(&[0; 16]), 0, 0, 0, 0])),
    ("adjtimex", |m| call(libc::SYS_adjtimex, [m.content(&[1, 0, 0, 0]), 0, 0, 0, 0, 0])),
    ("sethostname", |m| call(libc::SYS_sethostname, [m.path(), 1, 0, 0, 0, 0])),
    ("vhangup", |_| call(libc::SYS_vhangup, [0; 6])),
    ("shmget", |_| call(libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0])),
    ("mq_open", |m| call(libc::SYS_mq_open, [m.content(b"queue\0"), 0o102, 0o600, 0, 0, 0])),
    ("a landlock ruleset of its own", |_| call(libc::SYS_landlock_create_ruleset, [0, 0, 1, 0, 0, 0])),
    // What its open files could be told.
    ("ioctl TIOCSTI", |m| call(libc::SYS_ioctl, [0, 0x5412, m.content(b"x"), 0, 0, 0])),
    ("ioctl TIOCLINUX", |m| call(libc::SYS_ioctl, [0, 0x541c, m.content(&[3]), 0, 0, 0])),
    ("ioctl FICLONE", |m| call(libc::SYS_ioctl, [m.disk, 0x4004_9409, m.memory, 0, 0, 0])),
    ("ioctl FS_IOC_SETFLAGS", |m| call(libc::SYS_ioctl, [m.disk, 0x4008_6602, m.buffer(), 0, 0, 0])),
    ("ioctl TUNSETIFF", |m| call(libc::SYS_ioctl, [m.disk, 0x4004_54ca, m.buffer(), 0, 0, 0])),
    ("ioctl SIOCGIFCONF", |m| call(libc::SYS_ioctl, [m.control, 0x8912, m.buffer() + 5000, 0, 0, 0])),
    ("ioctl KVM_RUN of a disk", |m| call(libc::SYS_ioctl, [m.disk, 0xae80, 0, 0, 0, 0])),
    // Code.
    ("executable memory", |_| call(libc::SYS_mmap, [0, 4096, 7, 0x22, u64::MAX, 0])),
    ("memory made executable", |m| call(libc::SYS_mprotect, [m.buffer() & !4095, 4096, 7, 0, 0, 0])),
    ("a disk as code", |m| call(libc::SYS_mmap, [0, 4096, 5, 2, m.disk, 0])),
    ("pkey_mprotect", |m| call(libc::SYS_pkey_mprotect, [m.buffer() & !4095, 4096, 7, 0, 0, 0])),
    ("remap_file_pages", |m| call(libc::SYS_remap_file_pages, [m.buffer() & !4095, 4096, 0, 0, 0, 0])),
    ("uselib", |m| call(libc::SYS_uselib, [m.path(), 0, 0, 0, 0, 0])),
    ("32-bit call numbers", |m| call(0x4000_0000 + 2, [m.path(), 0, 0, 0, 0, 0])),
    ("a call that there is not", |_| call(10_000, [0; 6])),
];
