//! The walls around the process, which it builds around itself before it takes its first request: a user of its own without any
//! capability, no network, no file but the descriptors that it is given. Each thread then filters its system calls.
//!
//! Public, so that a test can try all of it from inside.

pub mod filter;

use ::jail::{Jail, Mounts, exactly};
use rustix::process::Resource;

pub use ::jail::{JailError, Leaving};

/// Users of VMM processes: this and the process's number, so that no two that live have the same, and no other program has
/// one. Above what systemd and distributions give to anybody. Source: systemd, "Users, Groups, UIDs and GIDs".
const FIRST_USER: u32 = 0x7000_0000;
/// Processors, devices, and what KVM itself starts for a machine.
const MOST_THREADS: u64 = 256;
/// The machine's own, and twice as many disks' files as a machine can have at once.
const MOST_FILES: u64 = 1024;

/// Locks this process in, for good, as soon as what is answered has finished.
///
/// When: one thread. A parent that is gone already has closed the socket.
///
/// # Errors
/// [`JailError`]: a wall is missing; the process must end.
pub fn enter() -> Result<Leaving, JailError> {
    let limits = [
        (Resource::Core, exactly(0)),
        (Resource::Nproc, exactly(MOST_THREADS)),
        (Resource::Nofile, exactly(MOST_FILES)),
    ];
    Jail { user: FIRST_USER + std::process::id(), mounts: Mounts::Gone, parent: None, limits: &limits }.enter()
}
