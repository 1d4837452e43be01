//! The walls around the process, which it builds around itself before it takes its first request: a user of its own without any
//! capability, no network, no file but the descriptors that it is given. Each thread then filters its system calls.

pub(crate) mod filter;

use std::io;

use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::sys;

/// Users of VMM processes: this and the process's number, so that no two that live have the same, and no other program has
/// one. Above what systemd and distributions give to anybody. Source: systemd, "Users, Groups, UIDs and GIDs".
const FIRST_USER: u32 = 0x7000_0000;
/// Processors, devices, and what KVM itself starts for a machine.
const MOST_THREADS: u64 = 256;
/// The machine's own, and twice as many disks' files as a machine can have at once.
const MOST_FILES: u64 = 1024;

/// A wall that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call failed.
    #[error("cannot {what}")]
    System {
        /// What it was for.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Landlock refused the rules.
    #[error("landlock")]
    Landlock(#[from] landlock::RulesetError),
    /// The system calls cannot be filtered.
    #[error("seccomp")]
    Seccomp(#[from] seccompiler::Error),
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError::System { what, source: error.into() }
}

/// Locks this process in, for good.
///
/// When: one thread. A process that is not root keeps its user, which has nothing to lose either; all other walls stand for
/// it, too.
///
/// # Errors
/// [`JailError`]: a wall is missing; the process must end.
pub(crate) fn enter() -> Result<(), JailError> {
    if rustix::process::geteuid().is_root() {
        become_nobody()?;
    }
    let none = CapabilitySet::empty();
    clear_ambient_capability_set().map_err(system("clear the ambient capabilities"))?;
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(system("drop the capabilities"))?;
    // A change of user takes both of these back, so they come after it. A parent that is gone already has closed the socket.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(system("forbid memory dumps"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(system("be ended with the parent"))?;
    set_no_new_privs(true).map_err(system("forbid new privileges"))?;
    forbid_files()?;
    for (resource, most) in [(Resource::Core, 0), (Resource::Nproc, MOST_THREADS), (Resource::Nofile, MOST_FILES)] {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(system("set a resource limit"))?;
    }
    Ok(())
}

/// Gives up root: namespaces without network and neighbours, no capability ever again, a user that owns nothing.
fn become_nobody() -> Result<(), JailError> {
    sys::leave_network().map_err(system("leave the host's network"))?;
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // The kernel knows no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(system("drop the bounding capabilities")(error)),
        }
    }
    let number = FIRST_USER + std::process::id();
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    set_thread_groups(&[]).map_err(system("leave all groups"))?;
    set_thread_res_gid(group, group, group).map_err(system("change the group"))?;
    set_thread_res_uid(user, user, user).map_err(system("change the user"))
}

/// The second wall before files and sockets, as far as this kernel has it: no rule, so nothing is allowed.
fn forbid_files() -> Result<(), JailError> {
    use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
    let newest = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .restrict_self()?;
    Ok(())
}
