//! The walls around a worker, which it builds around itself before it reads its first byte of input.

use ::jail::{Mounts, exactly};
use rustix::process::{Resource, Rlimit};

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

pub use ::jail::JailError;

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
        let limits = self.limits();
        // No call is left that could look at a mount.
        let walls = ::jail::Jail { user: NOBODY, mounts: Mounts::Kept, parent: Some(self.parent), limits: &limits };
        walls.enter()?.finish()?;
        filter::install()
    }

    fn limits(&self) -> [(Resource, Rlimit); 9] {
        [
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
        ]
    }
}
