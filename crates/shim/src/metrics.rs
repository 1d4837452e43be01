//! What a container uses, in containerd's forms: that for cgroup version 1, and that for version 2 ([`v2`]).
//!
//! Source: containerd/cgroups cgroup1/stats/metrics.proto.

mod v2;

use container::{MemoryStats, Stats};
use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, MemoryEntry, MemoryOomControl, MemoryStat, Metrics, PidsStat, Throttle,
};
use proto::gcs::wire::StatsResponse;
use protobuf::well_known_types::any::Any;

use crate::events::any;

/// Version 1 says "no limit" by the largest number of whole pages.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;
/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Source: `linux/magic.h`.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// What was counted, and by whom.
#[derive(Debug)]
pub enum Usage {
    /// A container on this host.
    Host(Box<Stats>),
    /// A container in a utility VM, by the guest's kernel.
    Guest(Box<StatsResponse>),
}

/// Which form a caller reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Cgroup version 1's, which our engine reads on every host.
    V1,
    /// Version 2's.
    V2,
}

impl Form {
    /// What containerd's clients expect on this host, as of its own shims.
    #[must_use]
    pub fn of_this_host() -> Self {
        let unified = rustix::fs::statfs(CGROUPS).is_ok_and(|facts| facts.f_type == CGROUP2_SUPER_MAGIC);
        if unified { Self::V2 } else { Self::V1 }
    }
}

impl Usage {
    /// The message for a caller.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn to_any(&self, form: Form) -> protobuf::Result<Any> {
        match (form, self) {
            (Form::V1, Self::Host(stats)) => any("io.containerd.cgroups.v1.Metrics", &of_host(stats)),
            (Form::V1, Self::Guest(stats)) => any("io.containerd.cgroups.v1.Metrics", &of_guest(stats)),
            (Form::V2, Self::Host(stats)) => any("io.containerd.cgroups.v2.Metrics", &v2::of_host(stats)),
            (Form::V2, Self::Guest(stats)) => any("io.containerd.cgroups.v2.Metrics", &v2::of_guest(stats)),
        }
    }
}

fn of_host(stats: &Stats) -> Metrics {
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
    memory.pg_pg_in = detail("pgpgin");
    memory.pg_pg_out = detail("pgpgout");
    memory.pg_fault = detail("pgfault");
    memory.pg_maj_fault = detail("pgmajfault");
    memory.mapped_file = detail("mapped_file");
    memory.dirty = detail("dirty");
    memory.writeback = detail("writeback");
    memory.inactive_anon = detail("inactive_anon");
    memory.active_anon = detail("active_anon");
    memory.active_file = detail("active_file");
    memory.unevictable = detail("unevictable");
    memory.total_pg_pg_in = detail("total_pgpgin");
    memory.total_pg_pg_out = detail("total_pgpgout");
    memory.total_pg_fault = detail("total_pgfault");
    memory.total_pg_maj_fault = detail("total_pgmajfault");
    memory.total_mapped_file = detail("total_mapped_file");
    memory.total_dirty = detail("total_dirty");
    memory.total_writeback = detail("total_writeback");
    memory.total_inactive_anon = detail("total_inactive_anon");
    memory.total_active_anon = detail("total_active_anon");
    memory.total_active_file = detail("total_active_file");
    memory.total_unevictable = detail("total_unevictable");
    let swap_limit = detail("hierarchical_memsw_limit");
    memory.hierarchical_swap_limit = swap_limit;
    let mut swap = MemoryEntry::new();
    // Version 1 counts memory and swap together.
    swap.usage = stats.usage_bytes + stats.swap_bytes;
    swap.limit = swap_limit;
    memory.swap = Some(swap).into();
    memory
}

/// Shape: of what the guest says, a limit of 0 is none.
fn of_guest(stats: &StatsResponse) -> Metrics {
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
