//! The evil worker: locks itself into the real jail and tries to get out, one way a process.

use std::ffi::CString;

use bulkhead_image::{Jail, limits::Limits};

use crate::jail::look_at_a_worker;
use crate::sys::call;

/// How this program knows that it is a probe.
pub const PROBE: &str = "bulkhead-test-probe";
/// Exit code of a probe whose call gave an error.
pub const DENIED: i32 = 10;
/// Exit code of a probe whose call worked.
pub const REACHED: i32 = 11;

/// What a probe gets: a path of a file that its user may read, a buffer.
struct Means {
    path: CString,
    parent: u64,
    buffer: Vec<u8>,
}

impl Means {
    fn path(&self) -> u64 {
        self.path.as_ptr() as u64
    }

    fn buffer(&mut self) -> u64 {
        self.buffer.as_mut_ptr() as u64
    }
}

type Try = fn(&mut Means) -> Result<i64, i32>;

/// The folder that relative paths begin at, as the register holds it.
const AT_FDCWD: u64 = (libc::AT_FDCWD as i64).cast_unsigned();

/// One system call each.
pub const PROBES: &[(&str, Probe)] = &[
    ("open", Probe(|m| call(libc::SYS_open, [m.path(), 0, 0, 0, 0, 0]))),
    ("openat", Probe(|m| call(libc::SYS_openat, [AT_FDCWD, m.path(), 0, 0, 0, 0]))),
    ("openat2", Probe(|m| call(libc::SYS_openat2, [AT_FDCWD, m.path(), m.buffer(), 24, 0, 0]))),
    ("creat", Probe(|m| call(libc::SYS_creat, [m.path(), 0o600, 0, 0, 0, 0]))),
    ("open_tree", Probe(|m| call(libc::SYS_open_tree, [AT_FDCWD, m.path(), 0, 0, 0, 0]))),
    ("open_by_handle_at", Probe(|m| call(libc::SYS_open_by_handle_at, [3, m.buffer(), 0, 0, 0, 0]))),
    ("stat", Probe(|m| call(libc::SYS_newfstatat, [AT_FDCWD, m.path(), m.buffer(), 0, 0, 0]))),
    ("statx", Probe(|m| call(libc::SYS_statx, [AT_FDCWD, m.path(), 0, 0x7ff, m.buffer(), 0]))),
    ("access", Probe(|m| call(libc::SYS_access, [m.path(), 0, 0, 0, 0, 0]))),
    ("readlink", Probe(|m| call(libc::SYS_readlink, [m.path(), m.buffer(), 100, 0, 0, 0]))),
    ("getdents", Probe(|m| call(libc::SYS_getdents64, [0, m.buffer(), 1000, 0, 0, 0]))),
    ("unlink", Probe(|m| call(libc::SYS_unlink, [m.path(), 0, 0, 0, 0, 0]))),
    ("rename", Probe(|m| call(libc::SYS_rename, [m.path(), m.path(), 0, 0, 0, 0]))),
    ("link", Probe(|m| call(libc::SYS_link, [m.path(), m.path(), 0, 0, 0, 0]))),
    ("symlink", Probe(|m| call(libc::SYS_symlink, [m.path(), m.path(), 0, 0, 0, 0]))),
    ("mkdir", Probe(|m| call(libc::SYS_mkdir, [m.path(), 0o700, 0, 0, 0, 0]))),
    ("mknod", Probe(|m| call(libc::SYS_mknod, [m.path(), 0o20_600, 0x103, 0, 0, 0]))),
    ("chmod", Probe(|m| call(libc::SYS_chmod, [m.path(), 0o777, 0, 0, 0, 0]))),
    ("fchmod", Probe(|_| call(libc::SYS_fchmod, [0, 0o777, 0, 0, 0, 0]))),
    ("chown", Probe(|m| call(libc::SYS_chown, [m.path(), 0, 0, 0, 0, 0]))),
    ("setxattr", Probe(|m| call(libc::SYS_setxattr, [m.path(), m.path(), m.path(), 1, 0, 0]))),
    ("truncate", Probe(|m| call(libc::SYS_truncate, [m.path(), 0, 0, 0, 0, 0]))),
    ("chdir", Probe(|m| call(libc::SYS_chdir, [m.path(), 0, 0, 0, 0, 0]))),
    ("chroot", Probe(|m| call(libc::SYS_chroot, [m.path(), 0, 0, 0, 0, 0]))),
    ("inotify", Probe(|_| call(libc::SYS_inotify_init1, [0; 6]))),
    ("fanotify", Probe(|_| call(libc::SYS_fanotify_init, [0; 6]))),
    ("socket inet", Probe(|_| call(libc::SYS_socket, [2, 1, 0, 0, 0, 0]))),
    ("socket unix", Probe(|_| call(libc::SYS_socket, [1, 1, 0, 0, 0, 0]))),
    ("socket netlink", Probe(|_| call(libc::SYS_socket, [16, 3, 0, 0, 0, 0]))),
    ("socket vsock", Probe(|_| call(libc::SYS_socket, [40, 1, 0, 0, 0, 0]))),
    ("socketpair", Probe(|m| call(libc::SYS_socketpair, [1, 1, 0, m.buffer(), 0, 0]))),
    ("connect", Probe(|m| call(libc::SYS_connect, [0, m.buffer(), 16, 0, 0, 0]))),
    ("bind", Probe(|m| call(libc::SYS_bind, [0, m.buffer(), 16, 0, 0, 0]))),
    ("sendmsg", Probe(|m| call(libc::SYS_sendmsg, [0, m.buffer(), 0, 0, 0, 0]))),
    ("recvmsg", Probe(|m| call(libc::SYS_recvmsg, [0, m.buffer(), 0, 0, 0, 0]))),
    ("execve", Probe(|m| call(libc::SYS_execve, [m.path(), 0, 0, 0, 0, 0]))),
    ("execveat", Probe(|m| call(libc::SYS_execveat, [AT_FDCWD, m.path(), 0, 0, 0, 0]))),
    ("fork", Probe(|_| call(libc::SYS_fork, [0; 6]))),
    ("vfork", Probe(|_| call(libc::SYS_vfork, [0; 6]))),
    ("clone", Probe(|_| call(libc::SYS_clone, [17, 0, 0, 0, 0, 0]))),
    ("clone3", Probe(|m| call(libc::SYS_clone3, [m.buffer(), 88, 0, 0, 0, 0]))),
    ("ptrace", Probe(|m| call(libc::SYS_ptrace, [16, m.parent, 0, 0, 0, 0]))),
    ("process_vm_readv", Probe(|m| call(libc::SYS_process_vm_readv, [m.parent, m.buffer(), 1, m.buffer(), 1, 0]))),
    ("kill the parent", Probe(|m| call(libc::SYS_kill, [m.parent, 9, 0, 0, 0, 0]))),
    ("tgkill the parent", Probe(|m| call(libc::SYS_tgkill, [m.parent, m.parent, 6, 0, 0, 0]))),
    (
        "tgkill itself quietly",
        Probe(|_| call(libc::SYS_tgkill, [std::process::id().into(), std::process::id().into(), 0, 0, 0, 0])),
    ),
    ("pidfd_open", Probe(|m| call(libc::SYS_pidfd_open, [m.parent, 0, 0, 0, 0, 0]))),
    ("pidfd_getfd", Probe(|_| call(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0, 0]))),
    ("mount", Probe(|m| call(libc::SYS_mount, [m.path(), m.path(), m.path(), 4096, 0, 0]))),
    ("umount", Probe(|m| call(libc::SYS_umount2, [m.path(), 0, 0, 0, 0, 0]))),
    ("fsopen", Probe(|m| call(libc::SYS_fsopen, [m.path(), 0, 0, 0, 0, 0]))),
    ("pivot_root", Probe(|m| call(libc::SYS_pivot_root, [m.path(), m.path(), 0, 0, 0, 0]))),
    ("unshare user", Probe(|_| call(libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]))),
    ("setns", Probe(|_| call(libc::SYS_setns, [0, 0, 0, 0, 0, 0]))),
    ("setuid back", Probe(|_| call(libc::SYS_setuid, [0; 6]))),
    ("setresuid back", Probe(|_| call(libc::SYS_setresuid, [0; 6]))),
    ("setgroups", Probe(|_| call(libc::SYS_setgroups, [0; 6]))),
    ("capset", Probe(|m| call(libc::SYS_capset, [m.buffer(), m.buffer(), 0, 0, 0, 0]))),
    ("dumpable again", Probe(|_| call(libc::SYS_prctl, [4, 1, 0, 0, 0, 0]))),
    ("outlive the parent", Probe(|_| call(libc::SYS_prctl, [1, 0, 0, 0, 0, 0]))),
    ("seccomp", Probe(|_| call(libc::SYS_seccomp, [0; 6]))),
    ("raise a limit", Probe(|m| call(libc::SYS_prlimit64, [0, 9, m.buffer(), 0, 0, 0]))),
    ("io_uring", Probe(|m| call(libc::SYS_io_uring_setup, [8, m.buffer(), 0, 0, 0, 0]))),
    ("bpf", Probe(|m| call(libc::SYS_bpf, [0, m.buffer(), 48, 0, 0, 0]))),
    ("perf_event_open", Probe(|m| call(libc::SYS_perf_event_open, [m.buffer(), 0, 0, 0, 0, 0]))),
    ("userfaultfd", Probe(|_| call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]))),
    ("memfd_create", Probe(|m| call(libc::SYS_memfd_create, [m.path(), 0, 0, 0, 0, 0]))),
    ("keyctl", Probe(|_| call(libc::SYS_keyctl, [0; 6]))),
    ("add_key", Probe(|m| call(libc::SYS_add_key, [m.path(), m.path(), 0, 0, 0, 0]))),
    ("ioctl", Probe(|m| call(libc::SYS_ioctl, [0, 0x5401, m.buffer(), 0, 0, 0]))),
    ("dup", Probe(|_| call(libc::SYS_dup, [0; 6]))),
    ("fcntl", Probe(|_| call(libc::SYS_fcntl, [0, 1, 0, 0, 0, 0]))),
    ("shmget", Probe(|_| call(libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]))),
    ("reboot", Probe(|_| call(libc::SYS_reboot, [0; 6]))),
    ("init_module", Probe(|m| call(libc::SYS_init_module, [m.buffer(), 0, m.path(), 0, 0, 0]))),
    ("clock_settime", Probe(|m| call(libc::SYS_clock_settime, [0, m.buffer(), 0, 0, 0, 0]))),
    ("sethostname", Probe(|m| call(libc::SYS_sethostname, [m.path(), 1, 0, 0, 0, 0]))),
    ("executable memory", Probe(|_| call(libc::SYS_mmap, [0, 4096, 7, 0x22, u64::MAX, 0]))),
    ("mprotect", Probe(|m| call(libc::SYS_mprotect, [m.buffer() & !4095, 4096, 7, 0, 0, 0]))),
    ("more memory than the limit", Probe(|_| call(libc::SYS_mmap, [0, 130 << 20, 3, 0x22, u64::MAX, 0]))),
    ("32-bit call numbers", Probe(|m| call(0x4000_0000 + 2, [m.path(), 0, 0, 0, 0, 0]))),
];

/// One way out.
pub struct Probe(Try);

/// Acts as a probe if this process was started as one.
pub fn act_as_probe() {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() != Some(PROBE) {
        return;
    }
    let name = arguments.next().unwrap();
    if name == "look" {
        look_at_a_worker();
        std::process::exit(0);
    }
    let path = arguments.next().unwrap_or_else(|| "/etc/passwd".to_owned());
    let parent = std::os::unix::process::parent_id();
    let mut means = Means { path: CString::new(path).unwrap(), parent: parent.into(), buffer: vec![0; 4096] };
    let allowed = Probe(|m| call(libc::SYS_getrandom, [m.buffer(), 16, 0, 0, 0, 0]));
    let probe = PROBES.iter().find(|(other, _)| *other == name).map_or(&allowed, |(_, probe)| probe);
    Jail::for_layer(&Limits::default(), parent).enter().unwrap();
    let code = if (probe.0)(&mut means).is_ok() { REACHED } else { DENIED };
    std::process::exit(code)
}
