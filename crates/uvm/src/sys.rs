//! The unsafe parts: what a VMM's process does between fork and exec, the memory of the throw-away probe VM, and the control
//! call that makes a tap.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr::NonNull;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use tokio::io::unix::AsyncFd;

/// The one capability that QEMU keeps (DAC_OVERRIDE): before 8.2 it opens the template's read-only memory file for writing,
/// even though it maps it privately. Everything else it needs arrives as an open descriptor.
pub(crate) const QEMU_CAPABILITIES: &[libc::c_ulong] = &[1];
/// What our own VMM needs to build its jail, in which it drops them (SETGID, SETUID, SETPCAP, SYS_ADMIN).
pub(crate) const VMM_CAPABILITIES: &[libc::c_ulong] = &[6, 7, 8, 21];
/// Capabilities to try to drop; kernels answer EINVAL for those they do not know.
const CAPABILITIES: libc::c_ulong = 64;

/// Makes `command` start a VMM: its own session, killed when the thread that spawns it ends, no core dump, no capability
/// but `capabilities`, no descriptor but the standard ones and `keep`.
///
/// When: spawn it from a thread that lives as long as the process, since the death signal follows that thread.
pub(crate) fn confine(command: &mut Command, keep: Vec<RawFd>, capabilities: &'static [libc::c_ulong]) {
    let parent = std::process::id().cast_signed();
    let prepare = move || {
        // SAFETY: every call below is a plain system call on values (async-signal-safe, no allocation, no lock), as
        // the child of a process with threads requires between fork and exec.
        unsafe {
            check(libc::setsid())?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong))?;
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
            for capability in (0..CAPABILITIES).filter(|capability| !capabilities.contains(capability)) {
                // Not permitted without privileges, and then there is nothing to drop.
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            for &fd in &keep {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` does only what is allowed between fork and exec, see there.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// The processor's time-stamp counter now, behind everything before it. Source: Intel SDM 2B, `LFENCE`, `RDTSC`.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has both instructions, and they touch no memory.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

/// Registers an owned descriptor with the runtime's reactor.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, always gives the same number, and is closed only when the AsyncFd is dropped, which
    // owns it.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);

/// Makes a tap of this name in the calling thread's network namespace: whole Ethernet frames, each behind virtio's header,
/// the link down. Source: Linux tuntap.rst.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut field = [0; libc::IFNAMSIZ];
    let (last, room) = field.split_last_mut().ok_or(io::ErrorKind::InvalidInput)?;
    *last = 0;
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let request = libc::ifreq { ifr_name: field, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the kernel reads the name, which ends in a zero, and the flags.
    unsafe { tun_set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(file.into())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One page of guest memory at guest-physical address 0 for the throw-away probe VM.
pub(crate) struct ProbeMemory {
    address: NonNull<libc::c_void>,
}

impl ProbeMemory {
    const BYTES: usize = 4096;

    /// Maps a page, writes `code` to its begin, and gives it to `vm` as slot 0 at address 0. The page must live as long
    /// as the VM runs.
    pub(crate) fn install(vm: &VmFd, code: &[u8]) -> io::Result<Self> {
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address).ok_or_else(|| io::Error::other("the kernel mapped address 0"))?;
        let memory = Self { address };
        assert!(code.len() <= Self::BYTES, "the probe's code fits a page");
        // SAFETY: the mapping is BYTES long, writable, and nobody else knows it; `code` is not longer.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), address.as_ptr().cast(), code.len()) };
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: Self::BYTES as u64,
            userspace_addr: address.as_ptr() as u64,
        };
        // SAFETY: the region is mapped, and the caller keeps it mapped while the VM runs.
        unsafe { vm.set_user_memory_region(region) }.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(memory)
    }
}

impl Drop for ProbeMemory {
    fn drop(&mut self) {
        // SAFETY: `install` made exactly this mapping, and no reference into it exists.
        if unsafe { libc::munmap(self.address.as_ptr(), Self::BYTES) } != 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "cannot unmap the probe's memory");
        }
    }
}
