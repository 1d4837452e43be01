//! What an idle fork has in memory for itself: the guest's pages, and the VMM's own.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_e2e::{IMAGE, TestHost};

use crate::footprint::IdleMemory;

/// No mapping of the VMM's own is as large as the smallest guest memory.
const LEAST_GUEST_KIB: u64 = 64 << 10;

/// An idle container behind each wall, and what its VMM's memory is made of.
pub fn measure(host: &TestHost) -> anyhow::Result<()> {
    let mut memory = IdleMemory::new();
    memory.of_containers(host);
    memory.print();
    let id = host.run_detached(&["--isolation=hyperv"], &["sleep", "1000"]);
    std::thread::sleep(Duration::from_secs(3));
    let pid = host.inspect(&id)["Bulkhead"]["VmmPids"][0].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let split = split(pid.context("inspect does not name the VMM")?)?;
    host.docker(&["rm", "-f", &id]).ok();
    let mib = |kib: u64| format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024);
    println!(
        "\nthe VMM of one idle container: {} of the guest, of it {} written; {} of its own (at most 3 MiB is asked for), of it {} dirty",
        mib(split.guest_kib),
        mib(split.guest_dirty_kib),
        mib(split.own_kib),
        mib(split.own_dirty_kib)
    );
    Ok(())
}

/// A process that waits with its shim. Shape: `host` keeps what an engine keeps by default.
pub fn measure_waiting(host: &TestHost) {
    // Before the first hyperv container nothing waits.
    host.docker(&["run", "--rm", "--isolation=hyperv", "--network=none", IMAGE, "true"]).ok();
    let mut memory = IdleMemory::new();
    memory.of_standby(host);
    memory.print();
}

/// Private memory of a VMM's process.
struct Split {
    guest_kib: u64,
    guest_dirty_kib: u64,
    own_kib: u64,
    own_dirty_kib: u64,
}

/// Source: proc_pid_smaps(5): a line without a colon behind its first word begins a mapping.
fn split(pid: u32) -> anyhow::Result<Split> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).context("cannot read the VMM's mappings")?;
    let mut found = Split { guest_kib: 0, guest_dirty_kib: 0, own_kib: 0, own_dirty_kib: 0 };
    let mut size = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(kib)) = (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) else {
            continue;
        };
        match name {
            "Size:" => size = kib,
            "Private_Clean:" if size >= LEAST_GUEST_KIB => found.guest_kib += kib,
            "Private_Dirty:" if size >= LEAST_GUEST_KIB => {
                found.guest_kib += kib;
                found.guest_dirty_kib += kib;
            }
            "Private_Clean:" => found.own_kib += kib,
            "Private_Dirty:" => {
                found.own_kib += kib;
                found.own_dirty_kib += kib;
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Processor time of all threads of a process so far. Source: Linux sched-stats.rst, `/proc/<pid>/schedstat`.
pub fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")?;
    for thread in tasks.flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}
