//! The system calls for which neither rustix nor nix has a safe function.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which of the two processes a fork returned in.
pub enum Forked {
    /// The caller; the new process has this id in the caller's pid namespace.
    Parent(u32),
    /// The new process.
    Child,
}

/// Forks a process whose parent is the caller's parent.
///
/// When: the caller has one thread. The new process starts in the pid namespace that the caller chose by setns(2).
///
/// Source: clone(2), `CLONE_PARENT`.
pub fn fork_sibling() -> io::Result<Forked> {
    clone_sibling(0, None)
}

/// The same into new namespaces and a cgroup. Shape: `namespaces` are clone(2)'s flags; `cgroup` is a folder of version 2.
///
/// Source: clone(2), `CLONE_INTO_CGROUP` (Linux 5.7).
pub fn fork_sibling_into(namespaces: u32, cgroup: BorrowedFd<'_>) -> io::Result<Forked> {
    clone_sibling(namespaces, Some(cgroup))
}

fn clone_sibling(namespaces: u32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    // From linux/sched.h, beyond the 32 bits of libc's constants.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let mut flags = u64::from(libc::CLONE_PARENT.unsigned_abs()) | u64::from(namespaces);
    let mut folder = 0;
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        folder = u64::try_from(cgroup.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    // As a raw system call, since libc's fork(2) cannot pass flags. The fields are those of clone3(2)'s third version.
    let arguments: [u64; 11] = [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, folder];
    // SAFETY: `arguments` is a valid clone_args of the size given; without CLONE_VM and with no stack both processes go on
    // with memory of their own, as after fork(2); the caller has a single thread, so no lock is held by another one.
    let result = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    match u32::try_from(result) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) => Ok(Forked::Parent(pid)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Ends the process at once, without running destructors or exit handlers that belong to the process it was forked from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

/// Gives every signal its default action and unblocks all: what a program expects of its parent. (A Rust program ignores
/// SIGPIPE, glibc's `posix_spawn` makes its children ignore signals 32 and 33, and what is ignored stays so through execve.)
pub fn reset_signals() {
    /// `struct kernel_sigaction`, all zero: the default action. (No architecture's is longer.)
    static DEFAULT: [u64; 5] = [0; 5];
    static NONE: u64 = 0;
    for signal in 1..=64 {
        // As raw system calls, since glibc's refuse its own two signals.
        // SAFETY: `DEFAULT` is a valid kernel_sigaction; signals that may not be changed are refused with an error, which is fine.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of_val(&NONE),
            )
        };
    }
    // SAFETY: the kernel's signal set is the eight bytes of `NONE`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const NONE,
            std::ptr::null_mut::<u64>(),
            size_of_val(&NONE),
        )
    };
}

/// Sends any signal, real-time ones included.
pub fn send_signal(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill(2) touches no memory of ours.
    nix::errno::Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Puts the calling thread behind a seccomp filter. Shape: `struct sock_filter`s, at most 4096; flags of seccomp(2).
pub fn load_seccomp_filter(instructions: &[u64], flags: u32) -> io::Result<()> {
    let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: instructions.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `program` names `len` instructions of 8 bytes, which the kernel copies (and never writes to) before it returns.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        // With TSYNC a positive number is the thread that could not follow.
        1.. => Err(io::Error::other(format!("thread {result} cannot be put behind the filter"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a detached mount (from `open_tree`) read-only.
///
/// Source: `mount_setattr(2)`, Linux 5.12.
pub fn set_mount_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    set_read_only(mount, 0)
}

/// As [`set_mount_read_only`], with all that is mounted below it.
pub fn set_mounts_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    set_read_only(mount, libc::AT_RECURSIVE)
}

fn set_read_only(mount: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated string and `attributes` a valid mount_attr of the size given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets `lo` up. Shape: `socket` is any socket of the network namespace. Source: netdevice(7).
pub fn bring_up_loopback(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: `request` is a valid ifreq and outlives the call, which fills in its flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the flags are what the call before has written.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | 1; // IFF_UP
    // SAFETY: as above; the call reads the flags only.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Loop devices. Source: loop(4), `linux/loop.h`.
pub mod loop_device {
    use super::{AsRawFd, File, io};

    const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;

    /// `struct loop_info64`; only the flags are ever set here.
    #[repr(C)]
    struct LoopInfo {
        device: u64,
        inode: u64,
        rdevice: u64,
        offset: u64,
        size_limit: u64,
        number: u32,
        encrypt_type: u32,
        encrypt_key_size: u32,
        flags: u32,
        file_name: [u8; 64],
        crypt_name: [u8; 64],
        encrypt_key: [u8; 32],
        init: [u64; 2],
    }

    /// `struct loop_config`.
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        info: LoopInfo,
        reserved: [u64; 8],
    }

    /// The number of a loop device that is free at the moment (another process may take it first).
    pub fn free_number(control: &File) -> io::Result<u32> {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        u32::try_from(number).map_err(|_| io::Error::last_os_error())
    }

    /// Whether a loop device can be written to.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Access {
        /// It cannot, however it is mounted.
        ReadOnly,
        /// It can.
        ReadWrite,
    }

    /// Puts `file` behind `device`; the device frees itself when its last user is gone.
    pub fn configure(device: &File, file: &File, access: Access) -> io::Result<()> {
        let Ok(fd) = u32::try_from(file.as_raw_fd()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let info = LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | if access == Access::ReadOnly { LO_FLAGS_READ_ONLY } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        };
        let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
        // SAFETY: `config` is a valid loop_config and outlives the call.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// BPF programs that decide about a cgroup's access to devices. Source: bpf(2), `linux/bpf.h`.
pub mod device_program {
    use super::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, io};

    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    /// Programs of parents and of this cgroup all have to agree.
    const BPF_F_ALLOW_MULTI: u32 = 2;

    /// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what is missing as zero.
    #[repr(C)]
    struct Load {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }

    /// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }

    /// Hands a program to the kernel, which verifies it. Shape: each instruction as its eight bytes in memory order.
    pub fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
        let Ok(instruction_count) = u32::try_from(instructions.len()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let attributes = Load {
            program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
            instruction_count,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buffer: 0,
            kernel_version: 0,
            flags: 0,
        };
        // SAFETY: `attributes` is the head of a valid bpf_attr of the size given; the instructions and the license it points
        // to outlive the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of_val(&attributes)) };
        match i32::try_from(result) {
            // SAFETY: the kernel has just made this file descriptor for us; nobody else owns it.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Attaches a program to a cgroup of version 2; it stays until the cgroup goes.
    pub fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
        let (Ok(target), Ok(program)) = (u32::try_from(cgroup.as_raw_fd()), u32::try_from(program.as_raw_fd())) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let attributes = Attach { target, program, kind: BPF_CGROUP_DEVICE, flags: BPF_F_ALLOW_MULTI };
        // SAFETY: `attributes` is the head of a valid bpf_attr of the size given and outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of_val(&attributes)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_sizes() {
        // linux/loop.h: 232 bytes of loop_info64, 8 bytes before, 64 after.
        assert_eq!(size_of::<libc::mount_attr>(), 32);
        let control = File::open("/dev/null").unwrap();
        assert!(loop_device::free_number(&control).is_err(), "/dev/null is no loop control");
    }
}
