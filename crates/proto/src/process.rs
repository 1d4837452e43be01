//! One process of a container, as `top` shows it.

use serde::{Deserialize, Serialize};

/// What `ps` says of one process. The shim attaches it as JSON to the `ProcessInfo` of containerd's `Pids` call, with
/// [`ProcessDetails::TYPE_URL`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDetails {
    /// Process id: the host's for a process container, the guest's for a hyperv container.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Effective user id.
    pub user_id: u32,
    /// Controlling terminal, such as `pts/0`, or `?`.
    pub terminal: String,
    /// Start, nanoseconds since the epoch.
    pub started_at_ns: i64,
    /// Processor time so far, milliseconds.
    pub cpu_ms: u64,
    /// The command line, arguments joined by spaces; `[name]` for a process without one.
    pub command: String,
}

impl ProcessDetails {
    /// The `type_url` under which the JSON of this struct travels.
    pub const TYPE_URL: &'static str = "dev.bulkhead.ProcessDetails";
}
