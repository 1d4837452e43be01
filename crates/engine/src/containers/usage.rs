//! What a container costs its host in memory.

use std::collections::BTreeSet;
use std::path::Path;

use proto::Isolation;

use crate::container::Container;
use crate::engine::Engine;

/// The proportional memory of the processes that the engine runs a container with: its shim, and the VMM's of a hyperv
/// container. The container's own processes are not among them: they are the payload. None when it does not run.
///
/// Source: proc(5), `smaps_rollup`, `Pss`: pages that several processes share are counted in parts, so that sums are true.
pub fn host_memory_bytes(container: &Container) -> Option<u64> {
    let running = container.running().ok()?;
    let mut pids = BTreeSet::from([running.shim_pid]);
    if container.isolation == Isolation::Hyperv {
        pids.extend(container.record().utility_vm.iter().flat_map(|vm| vm.vmm_pids.clone()));
    }
    Some(pids.into_iter().map(pss_bytes).sum())
}

fn pss_bytes(pid: u32) -> u64 {
    // A process that has just ended takes nothing.
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    parse_pss(&text)
}

fn parse_pss(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|number| number.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The log of a container's shim, while it runs.
#[must_use]
pub fn shim_log(engine: &Engine, container: &Container) -> Option<String> {
    let path = engine.bundle(&container.id).join("shim.log");
    Path::exists(&path).then(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_line_is_read() {
        let text = "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:  3000 kB\nPss:    2054 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(parse_pss(text), 2054 * 1024);
        assert_eq!(parse_pss(""), 0);
        assert!(pss_bytes(std::process::id()) > 0);
    }
}
