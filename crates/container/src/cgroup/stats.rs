//! What a container uses, and how often it was stopped from using more.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Cgroup, CgroupError, descend, read};

/// What a container has used so far. A number that this kernel does not give is 0; a limit that is not set is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Disks, one entry per device.
    pub block: Vec<BlockStats>,
}

/// Processor time, nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All together.
    pub total_ns: u64,
    /// In the processes' own code.
    pub user_ns: u64,
    /// In the kernel.
    pub kernel_ns: u64,
    /// By processor; version 1 only.
    pub per_cpu_ns: Vec<u64>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Periods in which it was throttled.
    pub throttled_periods: u64,
    /// How long it was throttled.
    pub throttled_ns: u64,
}

/// Memory, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// All together, page cache included.
    pub usage_bytes: u64,
    /// The most it ever was.
    pub peak_bytes: u64,
    /// The limit.
    pub limit_bytes: Option<u64>,
    /// Page cache that was not used lately: what Docker's clients subtract from the usage.
    pub inactive_file_bytes: u64,
    /// Page cache.
    pub cache_bytes: u64,
    /// Anonymous memory.
    pub anonymous_bytes: u64,
    /// Swap.
    pub swap_bytes: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// How many processes the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Everything in `memory.stat`, by its name there.
    pub details: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// The limit.
    pub limit: Option<u64>,
}

/// One disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Major device number.
    pub major: u64,
    /// Minor device number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

impl Cgroup {
    /// Reads all of it. When: while the cgroup exists.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        if let Some(folder) = self.unified() {
            // The one file that is always there tells whether the cgroup is.
            read(&folder.join("cgroup.procs"))?;
            return Ok(of_v2(folder));
        }
        let memory = self.v1("memory").map(v1_memory).unwrap_or_default();
        let pids = self.v1("pids").map(pids).unwrap_or_default();
        let block = self.v1("blkio").map(v1_block).unwrap_or_default();
        if let Some(folder) = self.v1("memory").or_else(|| self.v1("cpuacct")) {
            read(&folder.join("cgroup.procs"))?;
        }
        Ok(Stats { cpu: self.v1_cpu(), memory, pids, block })
    }

    /// How many processes the kernel has killed for want of memory, in the cgroup and below.
    pub fn oom_kills(&self) -> u64 {
        if let Some(folder) = self.unified() {
            // This file counts those below as well.
            return keyed(&folder.join("memory.events")).get("oom_kill").copied().unwrap_or(0);
        }
        let folders = self.v1("memory").and_then(|folder| descend(folder).ok()).unwrap_or_default();
        let of = |folder: &Path| keyed(&folder.join("memory.oom_control")).get("oom_kill").copied().unwrap_or(0);
        folders.iter().map(|folder| of(folder)).sum()
    }

    fn v1_cpu(&self) -> CpuStats {
        let mut cpu = CpuStats::default();
        if let Some(folder) = self.v1("cpuacct") {
            let split = keyed(&folder.join("cpuacct.stat"));
            let nanoseconds = |name: &str| {
                let ticks = split.get(name).copied().unwrap_or(0);
                ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second().max(1))
            };
            cpu.total_ns = number(&folder.join("cpuacct.usage")).unwrap_or(0);
            cpu.user_ns = nanoseconds("user");
            cpu.kernel_ns = nanoseconds("system");
            let per_cpu = read(&folder.join("cpuacct.usage_percpu")).unwrap_or_default();
            cpu.per_cpu_ns = per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        }
        if let Some(folder) = self.v1("cpu") {
            let throttling = keyed(&folder.join("cpu.stat"));
            cpu.periods = throttling.get("nr_periods").copied().unwrap_or(0);
            cpu.throttled_periods = throttling.get("nr_throttled").copied().unwrap_or(0);
            cpu.throttled_ns = throttling.get("throttled_time").copied().unwrap_or(0);
        }
        cpu
    }
}

fn v1_memory(folder: &Path) -> MemoryStats {
    let details = keyed(&folder.join("memory.stat"));
    let of = |name: &str| details.get(name).copied().unwrap_or(0);
    let file = |name: &str| number(&folder.join(name));
    let usage_bytes = file("memory.usage_in_bytes").unwrap_or(0);
    let with_swap = file("memory.memsw.usage_in_bytes").unwrap_or(usage_bytes);
    MemoryStats {
        usage_bytes,
        peak_bytes: file("memory.max_usage_in_bytes").unwrap_or(0),
        // "No limit" is the largest multiple of the page size.
        limit_bytes: file("memory.limit_in_bytes").filter(|limit| *limit < u64::MAX / 4),
        inactive_file_bytes: of("total_inactive_file"),
        cache_bytes: of("total_cache"),
        anonymous_bytes: of("total_rss"),
        swap_bytes: with_swap.saturating_sub(usage_bytes),
        limit_hits: file("memory.failcnt").unwrap_or(0),
        oom_kills: keyed(&folder.join("memory.oom_control")).get("oom_kill").copied().unwrap_or(0),
        details,
    }
}

fn v1_block(folder: &Path) -> Vec<BlockStats> {
    let mut devices: BTreeMap<(u64, u64), BlockStats> = BTreeMap::new();
    let mut gather = |names: [&str; 2], add: fn(&mut BlockStats, &str, u64)| {
        let text = names.iter().find_map(|name| read(&folder.join(name)).ok()).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(device), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some((major, minor)), Ok(value)) = (device_number(device), value.parse()) else { continue };
            let entry = devices.entry((major, minor));
            add(entry.or_insert_with(|| BlockStats { major, minor, ..BlockStats::default() }), operation, value);
        }
    };
    gather(
        ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"],
        |entry, operation, value| match operation {
            "Read" => entry.read_bytes += value,
            "Write" => entry.write_bytes += value,
            _ => {}
        },
    );
    gather(["blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"], |entry, operation, value| {
        match operation {
            "Read" => entry.reads += value,
            "Write" => entry.writes += value,
            _ => {}
        }
    });
    devices.into_values().collect()
}

fn of_v2(folder: &Path) -> Stats {
    let time = keyed(&folder.join("cpu.stat"));
    let time_of = |name: &str| time.get(name).copied().unwrap_or(0);
    let details = keyed(&folder.join("memory.stat"));
    let memory_of = |name: &str| details.get(name).copied().unwrap_or(0);
    let events = keyed(&folder.join("memory.events"));
    let file = |name: &str| number(&folder.join(name));
    let usage_bytes = file("memory.current").unwrap_or(0);
    Stats {
        cpu: CpuStats {
            total_ns: time_of("usage_usec").saturating_mul(1000),
            user_ns: time_of("user_usec").saturating_mul(1000),
            kernel_ns: time_of("system_usec").saturating_mul(1000),
            per_cpu_ns: Vec::new(),
            periods: time_of("nr_periods"),
            throttled_periods: time_of("nr_throttled"),
            throttled_ns: time_of("throttled_usec").saturating_mul(1000),
        },
        memory: MemoryStats {
            usage_bytes,
            // Linux 5.19; before it, the best guess is what is used now.
            peak_bytes: file("memory.peak").unwrap_or(usage_bytes),
            limit_bytes: file("memory.max"),
            inactive_file_bytes: memory_of("inactive_file"),
            cache_bytes: memory_of("file"),
            anonymous_bytes: memory_of("anon"),
            swap_bytes: file("memory.swap.current").unwrap_or(0),
            limit_hits: events.get("max").copied().unwrap_or(0),
            oom_kills: events.get("oom_kill").copied().unwrap_or(0),
            details,
        },
        pids: pids(folder),
        block: v2_block(&folder.join("io.stat")),
    }
}

fn pids(folder: &Path) -> PidsStats {
    PidsStats { current: number(&folder.join("pids.current")).unwrap_or(0), limit: number(&folder.join("pids.max")) }
}

fn v2_block(file: &Path) -> Vec<BlockStats> {
    let text = read(file).unwrap_or_default();
    let line = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device_number(device)?;
        let values: BTreeMap<&str, u64> = rest
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        let of = |name: &str| values.get(name).copied().unwrap_or(0);
        let (read_bytes, write_bytes) = (of("rbytes"), of("wbytes"));
        Some(BlockStats { major, minor, read_bytes, write_bytes, reads: of("rios"), writes: of("wios") })
    };
    text.lines().filter_map(line).collect()
}

fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A file with one number; `None` when it is missing or says `max`.
fn number(path: &Path) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

/// A file of lines with a name and a number.
fn keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = read(path).unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn version_2_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 4096\nfile 4096\ninactive_file 1024\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n"),
            ("pids.current", "4\n"),
            ("pids.max", "100\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let stats = of_v2(folder.path());
        assert_eq!((stats.cpu.total_ns, stats.cpu.throttled_ns, stats.cpu.periods), (1_500_000, 7000, 3));
        assert_eq!((stats.memory.usage_bytes, stats.memory.limit_bytes), (8192, None));
        assert_eq!((stats.memory.peak_bytes, stats.memory.inactive_file_bytes), (8192, 1024));
        assert_eq!((stats.memory.limit_hits, stats.memory.oom_kills), (5, 1));
        assert_eq!(stats.pids, PidsStats { current: 4, limit: Some(100) });
        assert_eq!(
            stats.block[0],
            BlockStats { major: 8, minor: 0, read_bytes: 10, write_bytes: 20, reads: 1, writes: 2 }
        );
        assert_eq!(stats.block.len(), 2);
    }

    #[test]
    fn version_1_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.usage_in_bytes", "5000\n"),
            ("memory.memsw.usage_in_bytes", "6000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "cache 1\ntotal_cache 100\ntotal_rss 200\ntotal_inactive_file 50\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n"),
            ("blkio.throttle.io_serviced", "8:0 Read 1\n8:0 Write 2\n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let memory = v1_memory(folder.path());
        assert_eq!((memory.usage_bytes, memory.swap_bytes, memory.limit_bytes), (5000, 1000, None));
        assert_eq!((memory.inactive_file_bytes, memory.oom_kills), (50, 2));
        let expected = BlockStats { major: 8, minor: 0, read_bytes: 10, write_bytes: 20, reads: 1, writes: 2 };
        assert_eq!(v1_block(folder.path()), [expected]);
    }
}
