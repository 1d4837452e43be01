//! The walls around a worker, which it builds around itself before it reads its first byte of input.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::filter;
use crate::limits::{Limits, MAX_WORKER_BYTES};

/// "nobody": owns nothing on any distribution. Source: Linux, `DEFAULT_OVERFLOWUID`.
const NOBODY: u32 = 65_534;
/// Bytes of the result beside the content, for each entry: an inode with a tail, and room for padding.
const FILE_BYTES_PER_ENTRY: u64 = 8192;
/// Bytes of the result whatever the layer.
const FILE_BYTES: u64 = 64 << 20;
/// Processor seconds that any layer gets.
const CPU_SECONDS: u64 = 60;
/// Bytes of a layer for which it gets one second more; a slow processor does ten times that.
const BYTES_PER_CPU_SECOND: u64 = 32 << 20;
/// Bytes of stack: nothing here recurses.
const STACK_BYTES: u64 = 1 << 20;

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
        source: std::io::Error,
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

fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError::System { what, source: error.into() }
}

/// The limits of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Jail {
    cpu_seconds: u64,
    file_bytes: u64,
    parent: u32,
}

impl Jail {
    /// The jail for one layer. Shape: `parent` is the process that started this one and that it does not outlive.
    #[must_use]
    pub fn for_layer(limits: &Limits, parent: u32) -> Self {
        let metadata = limits.layer_entries.saturating_mul(FILE_BYTES_PER_ENTRY).saturating_add(FILE_BYTES);
        Self {
            cpu_seconds: CPU_SECONDS + limits.layer_bytes / BYTES_PER_CPU_SECOND,
            file_bytes: limits.layer_bytes.saturating_add(metadata),
            parent,
        }
    }

    /// Locks this process in, for good: descriptors that are open stay usable, nothing else does.
    ///
    /// When: one thread, everything that it needs is open. A process that is not root keeps its user, which has nothing
    /// to lose either; all other walls stand for it, too.
    ///
    /// # Errors
    /// [`JailError`]: a wall is missing; the process must end.
    pub fn enter(&self) -> Result<(), JailError> {
        std::env::set_current_dir("/").map_err(system("leave the folder"))?;
        if rustix::process::geteuid().is_root() {
            become_nobody()?;
        }
        let none = CapabilitySet::empty();
        clear_ambient_capability_set().map_err(system("clear the ambient capabilities"))?;
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .map_err(system("drop the capabilities"))?;
        // A change of user takes both of these back, so they come after it.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(system("forbid memory dumps"))?;
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(system("be ended with the parent"))?;
        let parent = getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
        if parent != Some(self.parent) {
            return Err(JailError::Orphan);
        }
        set_no_new_privs(true).map_err(system("forbid new privileges"))?;
        forbid_files()?;
        self.set_limits()?;
        filter::install()
    }

    fn set_limits(&self) -> Result<(), JailError> {
        let exactly = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
        for (resource, limit) in [
            (Resource::Data, exactly(MAX_WORKER_BYTES)),
            (Resource::Stack, exactly(STACK_BYTES)),
            (Resource::Fsize, exactly(self.file_bytes)),
            // The soft limit's signal says why; the hard one cannot be ignored.
            (Resource::Cpu, Rlimit { current: Some(self.cpu_seconds), maximum: Some(self.cpu_seconds + 5) }),
            (Resource::Core, exactly(0)),
            (Resource::Nproc, exactly(0)),
            (Resource::Memlock, exactly(0)),
            (Resource::Msgqueue, exactly(0)),
            // Those that are open stay open.
            (Resource::Nofile, exactly(0)),
        ] {
            setrlimit(resource, limit).map_err(system("set a resource limit"))?;
        }
        Ok(())
    }
}

/// Gives up root: namespaces without network and neighbours, no capability ever again, a user that owns nothing.
fn become_nobody() -> Result<(), JailError> {
    let apart = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(apart).map_err(system("leave the host's network"))?;
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // The kernel knows no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(system("drop the bounding capabilities")(error)),
        }
    }
    setgroups(&[]).map_err(system("leave all groups"))?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(group, group, group).map_err(system("change the group"))?;
    setresuid(user, user, user).map_err(system("change the user"))
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
