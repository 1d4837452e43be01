//! What a container uses, in containerd's form for cgroup version 1, which every client of the Task API reads.
//!
//! Source: containerd/cgroups cgroup1/stats/metrics.proto.

use container::{MemoryStats, Stats};
use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, MemoryEntry, MemoryOomControl, MemoryStat, Metrics, PidsStat, Throttle,
};
use proto::gcs::wire::StatsResponse;

/// Version 1 says "no limit" by the largest number of whole pages.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

/// The form for a container on this host.
#[must_use]
pub fn of_host(stats: &Stats) -> Metrics {
    let mut processor = cpu(stats.cpu.total_ns, stats.cpu.user_ns, stats.cpu.kernel_ns);
    if let Some(usage) = processor.usage.as_mut() {
        usage.per_cpu.clone_from(&stats.cpu.per_cpu_ns);
    }
    let mut throttling = Throttle::new();
    throttling.periods = stats.cpu.periods;
    throttling.throttled_periods = stats.cpu.throttled_periods;
    throttling.throttled_time = stats.cpu.throttled_ns;
    processor.throttling = Some(throttling).into();
    let mut oom = MemoryOomControl::new();
    oom.oom_kill = stats.memory.oom_kills;
    let mut block = BlkIOStat::new();
    for device in &stats.block {
        let at = (device.major, device.minor);
        block.io_service_bytes_recursive.extend(entries(at, device.read_bytes, device.write_bytes));
        block.io_serviced_recursive.extend(entries(at, device.reads, device.writes));
    }
    Metrics {
        cpu: Some(processor).into(),
        memory: Some(memory_of_host(&stats.memory)).into(),
        memory_oom_control: Some(oom).into(),
        pids: Some(pids(stats.pids.current, stats.pids.limit)).into(),
        blkio: Some(block).into(),
        ..Metrics::default()
    }
}

fn memory_of_host(stats: &MemoryStats) -> MemoryStat {
    let detail = |name: &str| stats.details.get(name).copied().unwrap_or(0);
    let mut memory = memory(stats.usage_bytes, stats.peak_bytes, stats.limit_bytes, stats.inactive_file_bytes);
    if let Some(usage) = memory.usage.as_mut() {
        usage.failcnt = stats.limit_hits;
    }
    memory.cache = stats.cache_bytes;
    memory.total_cache = stats.cache_bytes;
    memory.rss = stats.anonymous_bytes;
    memory.total_rss = stats.anonymous_bytes;
    memory.pg_fault = detail("pgfault");
    memory.pg_maj_fault = detail("pgmajfault");
    let mut swap = MemoryEntry::new();
    swap.usage = stats.swap_bytes;
    memory.swap = Some(swap).into();
    memory
}

/// The form for a container in a utility VM: what the guest's kernel counts. Shape: a limit of 0 is none.
#[must_use]
pub fn of_guest(stats: &StatsResponse) -> Metrics {
    let limit = |limit: u64| Some(limit).filter(|&limit| limit != 0);
    let memory_limit = limit(stats.memory_limit_bytes);
    let inactive = stats.memory_inactive_file_bytes;
    let mut block = BlkIOStat::new();
    // The guest's disks have no numbers that would mean something here.
    block.io_service_bytes_recursive = entries((0, 0), stats.block_read_bytes, stats.block_write_bytes).into();
    Metrics {
        cpu: Some(cpu(stats.cpu_ns, stats.cpu_user_ns, stats.cpu_kernel_ns)).into(),
        memory: Some(memory(stats.memory_bytes, stats.memory_peak_bytes, memory_limit, inactive)).into(),
        pids: Some(pids(stats.pids, limit(stats.pids_limit))).into(),
        blkio: Some(block).into(),
        ..Metrics::default()
    }
}

fn cpu(total: u64, user: u64, kernel: u64) -> CPUStat {
    let mut usage = CPUUsage::new();
    usage.total = total;
    usage.user = user;
    usage.kernel = kernel;
    let mut stat = CPUStat::new();
    stat.usage = Some(usage).into();
    stat
}

fn memory(used: u64, peak: u64, limit: Option<u64>, inactive_file: u64) -> MemoryStat {
    let mut usage = MemoryEntry::new();
    usage.usage = used;
    usage.max = peak;
    usage.limit = limit.unwrap_or(UNLIMITED);
    let mut stat = MemoryStat::new();
    stat.hierarchical_memory_limit = usage.limit;
    stat.usage = Some(usage).into();
    stat.inactive_file = inactive_file;
    stat.total_inactive_file = inactive_file;
    stat
}

fn pids(current: u64, limit: Option<u64>) -> PidsStat {
    let mut stat = PidsStat::new();
    stat.current = current;
    // 0 is "no limit" here.
    stat.limit = limit.unwrap_or(0);
    stat
}

fn entries((major, minor): (u64, u64), read: u64, write: u64) -> [BlkIOEntry; 2] {
    [("Read", read), ("Write", write)].map(|(op, value)| {
        let mut entry = BlkIOEntry::new();
        entry.op = op.to_owned();
        entry.major = major;
        entry.minor = minor;
        entry.value = value;
        entry
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_numbers_are_found_where_docker_looks() {
        let mut stats = StatsResponse::new();
        stats.cpu_ns = 5_000;
        stats.memory_bytes = 1 << 20;
        stats.memory_inactive_file_bytes = 4096;
        stats.pids = 3;
        stats.pids_limit = 10;
        stats.block_write_bytes = 7;
        let metrics = of_guest(&stats);
        assert_eq!(metrics.cpu.usage.total, 5_000);
        assert_eq!((metrics.memory.usage.usage, metrics.memory.usage.limit), (1 << 20, UNLIMITED));
        assert_eq!(metrics.memory.total_inactive_file, 4096);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 10));
        let written = metrics.blkio.io_service_bytes_recursive.iter().find(|entry| entry.op == "Write").unwrap();
        assert_eq!(written.value, 7);
    }
}
