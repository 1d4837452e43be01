//! What stands by for a foreign containerd, utility VMs or processes to fork one in: for whom, where, and how a container gets it.
//!
//! ```text
//!   a container's shim, after its start ── Order ──▶ `standby`, a process that stands by at its Place   (crate::keeper)
//!   `start` of the next container ─── Claim ──▶ it
//!                                 ◀── Offer ───         its process ids, into the bundle; the address of its socket
//!                                 ─── taken ──▶ it      is that container's shim
//! ```
//!
//! Why so: docs/design/0005-standby.md, docs/design/0019-containerd.md.

mod claim;
mod place;
mod successor;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use proto::Isolation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::flags::Flags;
use crate::foreign::{Options, StandbyKind};
use crate::shares::in_host_mounts;

pub use claim::{Claim, Offer, claim, receive};
pub use place::{Place, QUIET, note_start, quiet_in};
pub use successor::Successor;

/// The command that makes one and has it stand by.
pub const COMMAND: &str = "standby";
/// What a process is called that stands by, and later is a container's shim.
pub const PROGRAM: &str = "containerd-shim-bulkhead-v2";
/// More than any order has.
const MOST_BYTES: u64 = 64 << 10;

/// A containerd, as it calls shims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Its gRPC socket.
    pub address: Option<String>,
    /// Where it takes events.
    pub events: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// What the runtime's name asks for.
    pub isolation: Option<Isolation>,
    /// More log.
    pub debug: bool,
}

impl Caller {
    /// Who has called this process. Shape: `isolation` is what the runtime's name asks for.
    #[must_use]
    pub fn new(flags: &Flags, isolation: Option<Isolation>) -> Self {
        Self {
            address: flags.address.clone(),
            events: std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty()),
            namespace: flags.namespace.clone().unwrap_or_default(),
            isolation,
            debug: flags.debug,
        }
    }
}

/// For whom something is to stand by: it serves who would order the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// For whose containers.
    pub caller: Caller,
    /// What they are run with.
    pub options: Options,
}

impl Order {
    /// Where it stands by.
    ///
    /// # Errors
    /// This program cannot be looked at.
    pub fn place(&self) -> io::Result<Place> {
        // Another version's are left alone: it may do otherwise.
        let program = fs::metadata("/proc/self/exe")?;
        let identity = (self, program.dev(), program.ino(), program.mtime(), program.mtime_nsec());
        let key = Sha256::digest(serde_json::to_vec(&identity)?);
        Ok(Place::of(&hex::encode(&key[..16])))
    }

    /// Starts a process that makes this and stands by; it is to be reaped. Answers `None` where one does already. When: blocks for a
    /// moment; the process waits until no start is under way.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn hand_out(&self, kind: StandbyKind) -> io::Result<Option<Child>> {
        if self.place()?.is_taken() {
            return Ok(None);
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0(PROGRAM).args(["-namespace", &self.caller.namespace, "-id", COMMAND, COMMAND]);
        // Of this process, whose log is its container's, it has nothing but the log, and that for a moment only.
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null());
        let text = serde_json::to_vec(&(self, kind))?;
        // Not among this process's mounts, which are to end with it.
        let mut child = in_host_mounts(|| command.spawn())?;
        // It is less than a pipe holds.
        let told = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(&text));
        told.map(|()| Some(child))
    }

    /// The order that this process was started with, and what it is to be.
    ///
    /// # Errors
    /// Standard input has none.
    pub fn receive() -> io::Result<(Self, StandbyKind)> {
        let mut text = Vec::new();
        io::stdin().lock().take(MOST_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let flags = Flags {
            namespace: Some("default".into()),
            address: Some("/run/containerd/containerd.sock".into()),
            ..Flags::default()
        };
        Order { caller: Caller::new(&flags, None), options: Options::default() }
    }

    #[test]
    fn who_would_order_the_same_shares_a_place_and_nobody_else() {
        let place = |order: &Order| order.place().unwrap();
        let first = order();
        assert_eq!(place(&first), place(&order()));
        let other_caller = |change: fn(&mut Caller)| {
            let mut other = order();
            change(&mut other.caller);
            other
        };
        let others = [
            other_caller(|caller| caller.namespace = "other".into()),
            other_caller(|caller| caller.address = None),
            other_caller(|caller| caller.isolation = Some(Isolation::Hyperv)),
            Order { options: Options { require_boundary: true, ..Options::default() }, ..order() },
            Order { options: Options { state: "/other".into(), ..Options::default() }, ..order() },
        ];
        for other in others {
            assert_ne!(place(&first), place(&other), "{other:?}");
        }
        let again: Order = serde_json::from_slice(&serde_json::to_vec(&first).unwrap()).unwrap();
        assert_eq!(again, first);
    }
}
