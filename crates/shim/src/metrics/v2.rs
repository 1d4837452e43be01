//! The form for cgroup version 2.
//!
//! Source: containerd/cgroups cgroup2/stats/metrics.proto.

use container::{MemoryStats, Stats};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use proto::gcs::wire::StatsResponse;

/// The form for a container on this host.
pub fn of_host(stats: &Stats) -> Metrics {
    let mut cpu = CPUStat::new();
    cpu.usage_usec = stats.cpu.total_ns / 1000;
    cpu.user_usec = stats.cpu.user_ns / 1000;
    cpu.system_usec = stats.cpu.kernel_ns / 1000;
    cpu.nr_periods = stats.cpu.periods;
    cpu.nr_throttled = stats.cpu.throttled_periods;
    cpu.throttled_usec = stats.cpu.throttled_ns / 1000;
    let mut events = MemoryEvents::new();
    events.max = stats.memory.limit_hits;
    events.oom_kill = stats.memory.oom_kills;
    let mut io = IOStat::new();
    for device in &stats.block {
        let mut entry = IOEntry::new();
        (entry.major, entry.minor) = (device.major, device.minor);
        (entry.rbytes, entry.wbytes) = (device.read_bytes, device.write_bytes);
        (entry.rios, entry.wios) = (device.reads, device.writes);
        io.usage.push(entry);
    }
    Metrics {
        cpu: Some(cpu).into(),
        memory: Some(memory(&stats.memory)).into(),
        memory_events: Some(events).into(),
        pids: Some(pids(stats.pids.current, stats.pids.limit)).into(),
        io: Some(io).into(),
        ..Metrics::default()
    }
}

fn memory(stats: &MemoryStats) -> MemoryStat {
    let detail = |name: &str| stats.details.get(name).copied().unwrap_or(0);
    let mut memory = MemoryStat::new();
    memory.usage = stats.usage_bytes;
    memory.usage_limit = stats.limit_bytes.unwrap_or(u64::MAX);
    memory.max_usage = stats.peak_bytes;
    memory.swap_usage = stats.swap_bytes;
    memory.anon = stats.anonymous_bytes;
    memory.file = stats.cache_bytes;
    memory.inactive_file = stats.inactive_file_bytes;
    memory.active_file = detail("active_file");
    memory.inactive_anon = detail("inactive_anon");
    memory.active_anon = detail("active_anon");
    memory.unevictable = detail("unevictable");
    memory.kernel_stack = detail("kernel_stack");
    memory.slab = detail("slab");
    memory.slab_reclaimable = detail("slab_reclaimable");
    memory.slab_unreclaimable = detail("slab_unreclaimable");
    memory.sock = detail("sock");
    memory.shmem = detail("shmem");
    memory.file_mapped = detail("file_mapped");
    memory.file_dirty = detail("file_dirty");
    memory.file_writeback = detail("file_writeback");
    memory.anon_thp = detail("anon_thp");
    memory.pgfault = detail("pgfault");
    memory.pgmajfault = detail("pgmajfault");
    memory
}

/// The form for a container in a utility VM: what the guest's kernel counts. Shape: a limit of 0 is none.
pub fn of_guest(stats: &StatsResponse) -> Metrics {
    let limit = |limit: u64| Some(limit).filter(|&limit| limit != 0);
    let mut cpu = CPUStat::new();
    cpu.usage_usec = stats.cpu_ns / 1000;
    cpu.user_usec = stats.cpu_user_ns / 1000;
    cpu.system_usec = stats.cpu_kernel_ns / 1000;
    let mut memory = MemoryStat::new();
    memory.usage = stats.memory_bytes;
    memory.usage_limit = limit(stats.memory_limit_bytes).unwrap_or(u64::MAX);
    memory.max_usage = stats.memory_peak_bytes;
    memory.inactive_file = stats.memory_inactive_file_bytes;
    let mut io = IOStat::new();
    // The guest's disks have no numbers that would mean something here.
    let mut disks = IOEntry::new();
    (disks.rbytes, disks.wbytes) = (stats.block_read_bytes, stats.block_write_bytes);
    io.usage.push(disks);
    Metrics {
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        pids: Some(pids(stats.pids, limit(stats.pids_limit))).into(),
        io: Some(io).into(),
        ..Metrics::default()
    }
}

fn pids(current: u64, limit: Option<u64>) -> PidsStat {
    let mut stat = PidsStat::new();
    stat.current = current;
    // 0 is "no limit" here.
    stat.limit = limit.unwrap_or(0);
    stat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_version_2_is_told_in_its_words() {
        let mut stats = Stats::default();
        stats.cpu.total_ns = 7_000_999;
        stats.memory.usage_bytes = 4096;
        stats.memory.oom_kills = 2;
        stats.memory.details.insert("shmem".to_owned(), 5);
        let metrics = of_host(&stats);
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.usage), (7000, 4096));
        assert_eq!((metrics.memory.usage_limit, metrics.memory.shmem), (u64::MAX, 5));
        assert_eq!(metrics.memory_events.oom_kill, 2);
    }

    #[test]
    fn a_guests_limits_and_disks_are_told() {
        let mut stats = StatsResponse::new();
        stats.memory_limit_bytes = 1 << 20;
        stats.block_write_bytes = 9;
        let metrics = of_guest(&stats);
        assert_eq!((metrics.memory.usage_limit, metrics.io.usage[0].wbytes), (1 << 20, 9));
    }
}
