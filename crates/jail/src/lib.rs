//! The walls that a process builds around itself, for good, before it takes anything from a stranger: namespaces without
//! network and neighbours, perhaps without any file; a user that owns nothing, without any capability ever again; landlock without a rule;
//! limits; and a filter of system calls, which is a list of the process's own.
//!
//! ```text
//! one thread ── Jail::enter ──▶ has what descriptors it has ── Leaving::finish ── threads ── Filter::install, each its own
//! ```
//!
//! Descriptors that are open stay usable, nothing else does.
#![deny(unsafe_code)]

mod filter;
mod root;
mod sys;

use std::io;

use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, getppid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

pub use filter::{Argument, Filter, Is};
pub use root::Leaving;

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
    /// The parent ended meanwhile.
    #[error("the parent is gone")]
    Orphan,
    /// Landlock refused the rules.
    #[error("landlock")]
    Landlock(#[from] landlock::RulesetError),
    /// The system calls cannot be filtered.
    #[error("seccomp")]
    Seccomp(#[from] seccompiler::Error),
}

pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError::System { what, source: error.into() }
}

/// What becomes of the host's mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// They stay. For a process whose filter leaves no call that could look at them: to let go of them takes longer than everything
    /// else together.
    Kept,
    /// They are gone: the root is an empty folder that cannot be written.
    Gone,
}

/// The walls of one process.
#[derive(Debug, Clone, Copy)]
pub struct Jail<'a> {
    /// User and group that it becomes, if it is root.
    pub user: u32,
    /// What becomes of the host's mounts, if it is root.
    pub mounts: Mounts,
    /// The process that started this one and that it does not outlive, if whoever calls knows it.
    pub parent: Option<u32>,
    /// Limits of resources.
    pub limits: &'a [(Resource, Rlimit)],
}

/// A limit that cannot be passed, and that is soft and hard at once.
#[must_use]
pub fn exactly(most: u64) -> Rlimit {
    Rlimit { current: Some(most), maximum: Some(most) }
}

impl Jail<'_> {
    /// Locks this process in, all but its system calls.
    ///
    /// When: one thread, everything that it needs is open. A process that is not root keeps its user, which has nothing to
    /// lose either; all walls stand for it, too, but for those that only root can build.
    ///
    /// # Errors
    /// [`JailError`]: a wall is missing; the process must end.
    pub fn enter(&self) -> Result<Leaving, JailError> {
        std::env::set_current_dir("/").map_err(system("leave the folder"))?;
        let leaving = if rustix::process::geteuid().is_root() { self.leave_root()? } else { Leaving::nothing() };
        let none = CapabilitySet::empty();
        clear_ambient_capability_set().map_err(system("clear the ambient capabilities"))?;
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .map_err(system("drop the capabilities"))?;
        // A change of user takes both of these back, so they come after it.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(system("forbid memory dumps"))?;
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(system("be ended with the parent"))?;
        let parent = getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
        if self.parent.is_some() && parent != self.parent {
            return Err(JailError::Orphan);
        }
        set_no_new_privs(true).map_err(system("forbid new privileges"))?;
        forbid_files()?;
        for &(resource, limit) in self.limits {
            setrlimit(resource, limit).map_err(system("set a resource limit"))?;
        }
        Ok(leaving)
    }

    /// Gives up root: namespaces without network and neighbours, no capability ever again, a user that owns nothing.
    fn leave_root(&self) -> Result<Leaving, JailError> {
        let apart = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        let leaving = match self.mounts {
            Mounts::Kept => {
                sys::leave(apart).map_err(system("leave the host's network"))?;
                Leaving::nothing()
            }
            Mounts::Gone => {
                sys::leave(apart | UnshareFlags::NEWNS).map_err(system("leave the host's network and mounts"))?;
                root::become_empty()?
            }
        };
        for bit in 0..u64::BITS {
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
                Ok(()) => {}
                // The kernel knows no more.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => return Err(system("drop the bounding capabilities")(error)),
            }
        }
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        set_thread_groups(&[]).map_err(system("leave all groups"))?;
        set_thread_res_gid(group, group, group).map_err(system("change the group"))?;
        set_thread_res_uid(user, user, user).map_err(system("change the user"))?;
        Ok(leaving)
    }
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
