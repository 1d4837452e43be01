//! The system calls of each kind of thread. Any other ends the process, and with it the machine.

use ::jail::{Filter, Is, JailError};
use vmm_sys_util::signal::SIGRTMIN;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes requests, saves the machine.
    Control,
    /// Runs a processor.
    Processor,
    /// Serves the console and other devices that touch no file. Streams come to the socket device as descriptors, and are watched.
    Devices,
    /// Reads and writes a disk's files.
    Disk,
    /// Moves frames.
    Network,
}

/// Of every thread, whatever their arguments: memory, locks, descriptors that are open, the end. None of them names a file, a
/// process or an address of the network.
const ALL: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    // abort(3), panic messages and pthread_kill(3) ask who they are.
    libc::SYS_rt_sigprocmask,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
const WAIT: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];
/// Letters of KVM's control calls, in their second byte. Source: Linux include/uapi/linux/kvm.h, `KVMIO`.
const KVM_CALLS: u64 = 0xae00;
const KVM_MASK: u64 = 0xff00;
/// Runs a processor.
const KVM_RUN: u64 = 0xae80;

impl Role {
    /// What it does beside [`ALL`], whatever the arguments.
    fn own(self) -> Vec<libc::c_long> {
        match self {
            Self::Control => vec![libc::SYS_poll, libc::SYS_ppoll, libc::SYS_recvmsg, libc::SYS_sendmsg],
            Self::Processor => Vec::new(),
            Self::Devices => {
                let sockets = [libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_recvmsg, libc::SYS_sendmsg];
                [WAIT, &sockets, &[libc::SYS_epoll_ctl, libc::SYS_shutdown]].concat()
            }
            Self::Disk => {
                let files = [libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_fallocate, libc::SYS_fdatasync];
                [WAIT, &files].concat()
            }
            Self::Network => WAIT.to_vec(),
        }
    }
}

/// Filters this thread's system calls from now on. When: no_new_privs is set.
///
/// # Errors
/// When the kernel does not take the filter; the process must end.
pub fn install(role: Role) -> Result<(), JailError> {
    filter(role)?.install()
}

fn filter(role: Role) -> Result<Filter, JailError> {
    let filter = Filter::allowing(ALL.iter().copied().chain(role.own()));
    let filter = filter.memory_without_code(&[libc::SYS_mmap, libc::SYS_mprotect])?;
    match role {
        // Processors are kicked by a signal.
        Role::Control => filter
            .signals_to_itself(&[libc::SIGABRT, SIGRTMIN()])?
            .only_where(libc::SYS_ioctl, &[(1, Is::Masked { mask: KVM_MASK, value: KVM_CALLS })]),
        Role::Processor => {
            filter.signals_to_itself(&[libc::SIGABRT])?.only_where(libc::SYS_ioctl, &[(1, Is::Equal(KVM_RUN))])
        }
        Role::Devices | Role::Disk | Role::Network => filter.signals_to_itself(&[libc::SIGABRT]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_thread_may_name_a_file_a_process_or_an_address() {
        let naming = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_open,
        ];
        for role in [Role::Control, Role::Processor, Role::Devices, Role::Disk, Role::Network] {
            let filter = filter(role).unwrap();
            assert!(filter.allows(libc::SYS_read) && naming.iter().all(|&call| !filter.allows(call)), "{role:?}");
        }
    }
}
