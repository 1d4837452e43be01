//! Limits: what Docker checks of them, and how they are written for the container's cgroup.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bollard::models::{HostConfig, ResourcesBlkioWeightDevice, ThrottleDevice};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
    LinuxThrottleDeviceBuilder, LinuxWeightDevice, LinuxWeightDeviceBuilder,
};
use proto::Isolation;

use super::SpecError;

/// Bytes: 6 MB, below which a container's first process does not come up. Source: moby `daemon/daemon_unix.go`.
pub const MIN_MEMORY_BYTES: i64 = 6 * 1024 * 1024;
/// Microseconds: the scheduler's period when only `--cpus` is given. Source: as above.
const CPU_PERIOD_US: u64 = 100_000;
/// Billionths of a processor in one.
const NANO_CPUS: i64 = 1_000_000_000;

/// Checks every limit and writes the cgroup's part of the spec. `devices` are the device rules, already decided.
pub(super) fn build(
    host: &HostConfig,
    isolation: Isolation,
    devices: Vec<LinuxDeviceCgroup>,
) -> Result<LinuxResources, SpecError> {
    if isolation == Isolation::Hyperv {
        refuse_what_a_utility_vm_has_not(host)?;
    }
    // Rates of devices are the utility VM's own.
    let block_io = if isolation == Isolation::Process { block_io(host)? } else { None };
    let mut resources = LinuxResources::default();
    resources
        .set_devices(Some(devices))
        .set_memory(memory(host, isolation)?)
        .set_cpu(cpu(host)?)
        .set_pids(pids(host))
        .set_block_io(block_io);
    Ok(resources)
}

/// The range of oom_score_adj. Source: proc(5).
pub(super) fn oom_score_adj(host: &HostConfig) -> Result<Option<i32>, SpecError> {
    let value = host.oom_score_adj.unwrap_or_default();
    match i32::try_from(value) {
        Ok(adjustment) if (-1000..=1000).contains(&adjustment) => Ok(Some(adjustment)),
        _ => limit(format!("Invalid value {value}, range for oom score adj is [-1000, 1000]")),
    }
}

fn limit<T>(text: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Limit(text.into()))
}

/// A positive limit; zero and less mean none in the API.
fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value > 0)
}

fn refuse_what_a_utility_vm_has_not(host: &HostConfig) -> Result<(), SpecError> {
    let text = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let asked = [
        ("--cpuset-cpus", text(&host.cpuset_cpus)),
        ("--cpuset-mems", text(&host.cpuset_mems)),
        ("--blkio-weight", host.blkio_weight.is_some_and(|weight| weight > 0)),
        ("--blkio-weight-device", host.blkio_weight_device.as_ref().is_some_and(|list| !list.is_empty())),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((option, _)) => Err(SpecError::NotAvailable(format!("{option} cannot be used with isolation hyperv yet"))),
        None => Ok(()),
    }
}

fn memory(host: &HostConfig, isolation: Isolation) -> Result<Option<LinuxMemory>, SpecError> {
    let (bytes, swap) = (host.memory.unwrap_or_default(), host.memory_swap.unwrap_or_default());
    let reservation = host.memory_reservation.unwrap_or_default();
    if bytes != 0 && bytes < MIN_MEMORY_BYTES {
        return limit("Minimum memory limit allowed is 6MB");
    }
    if bytes > 0 && swap > 0 && swap < bytes {
        return limit("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if bytes == 0 && swap > 0 {
        return limit("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if reservation != 0 && reservation < MIN_MEMORY_BYTES {
        return limit("Minimum memory reservation allowed is 6MB");
    }
    if bytes > 0 && reservation > bytes {
        return limit("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    let swappiness = match host.memory_swappiness {
        None | Some(-1) => None,
        Some(value) if (0..=100).contains(&value) => u64::try_from(value).ok(),
        Some(value) => return limit(format!("Invalid value: {value}, valid memory swappiness range is 0-100")),
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(set(Some(bytes))).set_reservation(set(Some(reservation))).set_swappiness(swappiness);
    if isolation == Isolation::Process && swap_is_counted() {
        // Docker's rule: memory and swap together are twice the memory when nothing is said. A utility VM has no swap.
        memory.set_swap(match swap {
            0 => set(Some(bytes)).map(|bytes| bytes.saturating_mul(2)),
            -1 => (bytes > 0).then_some(-1),
            together => Some(together),
        });
    }
    memory.set_disable_oom_killer(host.oom_kill_disable.filter(|disable| *disable));
    Ok((memory != LinuxMemory::default()).then_some(memory))
}

/// True where the host's kernel can limit swap: always with cgroup v2, by boot option with v1.
fn swap_is_counted() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

fn cpu(host: &HostConfig) -> Result<Option<LinuxCpu>, SpecError> {
    let (nano, period) = (host.nano_cpus.unwrap_or_default(), host.cpu_period.unwrap_or_default());
    let (quota, shares) = (host.cpu_quota.unwrap_or_default(), host.cpu_shares.unwrap_or_default());
    if nano != 0 && period > 0 {
        return limit("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if nano != 0 && quota > 0 {
        return limit("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    let available = available_cpus();
    if nano < 0 || nano > available.saturating_mul(NANO_CPUS) {
        return limit(format!(
            "range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available"
        ));
    }
    if !(0..=262_144).contains(&shares) {
        return limit(format!("invalid CPU shares ({shares}): value must be between 0 and 262144"));
    }
    if period != 0 && !(1_000..=1_000_000).contains(&period) {
        return limit("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if quota > 0 && quota < 1_000 {
        return limit("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if set(host.cpu_realtime_period).is_some() || set(host.cpu_realtime_runtime).is_some() {
        return Err(SpecError::NotAvailable("--cpu-rt-period and --cpu-rt-runtime are not there yet".into()));
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(u64::try_from(shares).ok().filter(|shares| *shares > 0));
    if nano > 0 {
        cpu.set_period(Some(CPU_PERIOD_US)).set_quota(Some((nano / (NANO_CPUS / 100_000)).max(1_000)));
    } else {
        cpu.set_period(u64::try_from(period).ok().filter(|period| *period > 0)).set_quota(set(Some(quota)));
    }
    cpu.set_cpus(cpu_list("cpus", host.cpuset_cpus.as_deref(), "/sys/devices/system/cpu/online")?);
    cpu.set_mems(cpu_list("mems", host.cpuset_mems.as_deref(), "/sys/devices/system/node/online")?);
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

fn available_cpus() -> i64 {
    std::thread::available_parallelism().ok().and_then(|count| i64::try_from(count.get()).ok()).unwrap_or(1)
}

/// A list such as `0-2,5`, checked against what the host has.
fn cpu_list(what: &str, list: Option<&str>, online_file: &str) -> Result<Option<String>, SpecError> {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(None) };
    let Some(wanted) = parse_list(list) else {
        return limit(format!("Invalid value {list} for cpuset {what}"));
    };
    let online = std::fs::read_to_string(online_file).unwrap_or_else(|_| "0".into());
    let online = online.trim();
    let available = parse_list(online).unwrap_or_default();
    if wanted.iter().all(|number| available.contains(number)) {
        return Ok(Some(list.to_owned()));
    }
    let name = if what == "cpus" { "CPUs" } else { "memory nodes" };
    limit(format!("Requested {name} are not available - requested {list}, available: {online}"))
}

/// Numbers of a kernel list format. At most 8192, so that `0-4294967295` is no way to fill the daemon's memory.
fn parse_list(list: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first || last >= 8192 {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn pids(host: &HostConfig) -> Option<LinuxPids> {
    set(host.pids_limit).map(|count| {
        let mut pids = LinuxPids::default();
        pids.set_limit(count);
        pids
    })
}

fn block_io(host: &HostConfig) -> Result<Option<LinuxBlockIo>, SpecError> {
    let weight = host.blkio_weight.filter(|weight| *weight > 0);
    if weight.is_some_and(|weight| !(10..=1000).contains(&weight)) {
        return limit("Range of blkio weight is from 10 to 1000");
    }
    if set(host.io_maximum_bandwidth).is_some() || set(host.io_maximum_iops).is_some() {
        return limit("Invalid QoS settings: Linux does not support Maximum IO Bandwidth or Maximum IO IOps");
    }
    let mut io = LinuxBlockIo::default();
    io.set_weight(weight)
        .set_weight_device(weights(host.blkio_weight_device.as_deref())?)
        .set_throttle_read_bps_device(throttles(host.blkio_device_read_bps.as_deref())?)
        .set_throttle_write_bps_device(throttles(host.blkio_device_write_bps.as_deref())?)
        .set_throttle_read_iops_device(throttles(host.blkio_device_read_iops.as_deref())?)
        .set_throttle_write_iops_device(throttles(host.blkio_device_write_iops.as_deref())?);
    Ok((io != LinuxBlockIo::default()).then_some(io))
}

fn weights(list: Option<&[ResourcesBlkioWeightDevice]>) -> Result<Option<Vec<LinuxWeightDevice>>, SpecError> {
    let one = |device: &ResourcesBlkioWeightDevice| {
        let (major, minor) = block_device(device.path.as_deref())?;
        let weight = device.weight.and_then(|weight| u16::try_from(weight).ok());
        if !weight.is_some_and(|weight| (10..=1000).contains(&weight)) {
            return limit("Range of blkio weight is from 10 to 1000");
        }
        let entry = LinuxWeightDeviceBuilder::default().major(major).minor(minor).weight(weight.unwrap_or_default());
        Ok(entry.build().expect("every field has a default"))
    };
    list.filter(|list| !list.is_empty()).map(|list| list.iter().map(one).collect()).transpose()
}

fn throttles(list: Option<&[ThrottleDevice]>) -> Result<Option<Vec<LinuxThrottleDevice>>, SpecError> {
    let one = |device: &ThrottleDevice| {
        let (major, minor) = block_device(device.path.as_deref())?;
        let Some(rate) = device.rate.and_then(|rate| u64::try_from(rate).ok()) else {
            return limit("invalid rate for a device: it must not be negative");
        };
        let entry = LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(rate);
        Ok(entry.build().expect("every field has a default"))
    };
    list.filter(|list| !list.is_empty()).map(|list| list.iter().map(one).collect()).transpose()
}

fn block_device(path: Option<&str>) -> Result<(i64, i64), SpecError> {
    let path = path.unwrap_or_default();
    let metadata = std::fs::metadata(path).map_err(|source| SpecError::Device { path: path.into(), source })?;
    if !metadata.file_type().is_block_device() {
        return limit(format!("{path} is no block device"));
    }
    Ok(super::devices::numbers(metadata.rdev()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut HostConfig)) -> HostConfig {
        let mut host = HostConfig::default();
        change(&mut host);
        host
    }

    fn built(host: &HostConfig) -> Result<LinuxResources, SpecError> {
        build(host, Isolation::Process, Vec::new())
    }

    #[test]
    fn limits_out_of_range_are_refused_in_dockers_words() {
        let cases: [(HostConfig, &str); 8] = [
            (with(|h| h.memory = Some(1024)), "Minimum memory limit allowed is 6MB"),
            (with(|h| h.memory = Some(-1)), "Minimum memory limit allowed is 6MB"),
            (
                with(|h| h.memory_swap = Some(1 << 30)),
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                with(|h| (h.memory, h.memory_swap) = (Some(1 << 30), Some(1 << 20))),
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                with(|h| (h.nano_cpus, h.cpu_quota) = (Some(NANO_CPUS), Some(5000))),
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ),
            (
                with(|h| h.cpu_period = Some(10)),
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ),
            (with(|h| h.blkio_weight = Some(5)), "Range of blkio weight is from 10 to 1000"),
            (with(|h| h.cpuset_cpus = Some("zero".into())), "Invalid value zero for cpuset cpus"),
        ];
        for (host, text) in cases {
            assert_eq!(built(&host).unwrap_err().to_string(), text);
        }
        let error = built(&with(|h| h.nano_cpus = Some(100_000 * NANO_CPUS))).unwrap_err().to_string();
        assert!(error.starts_with("range of CPUs is from 0.01 to "), "{error}");
        let error = built(&with(|h| h.cpuset_cpus = Some("0-8000".into()))).unwrap_err().to_string();
        assert!(error.starts_with("Requested CPUs are not available - requested 0-8000"), "{error}");
        assert!(built(&with(|h| h.cpuset_cpus = Some("0-4294967295".into()))).is_err());
    }

    #[test]
    fn cpus_become_quota_and_period() {
        let cpu = cpu(&with(|h| h.nano_cpus = Some(500_000_000))).unwrap().unwrap();
        assert_eq!((cpu.period(), cpu.quota()), (Some(CPU_PERIOD_US), Some(50_000)));
        let smallest = super::cpu(&with(|h| h.nano_cpus = Some(1))).unwrap().unwrap();
        assert_eq!(smallest.quota(), Some(1_000));
    }

    #[test]
    fn nothing_said_is_nothing_limited() {
        let resources = built(&with(|h| (h.pids_limit, h.memory_swappiness) = (Some(-1), Some(-1)))).unwrap();
        assert_eq!((resources.memory(), resources.cpu(), resources.pids()), (&None, &None, &None));
        let resources = built(&with(|h| (h.pids_limit, h.memory) = (Some(9), Some(8 << 20)))).unwrap();
        assert_eq!(resources.pids().unwrap().limit(), 9);
        assert_eq!(resources.memory().unwrap().limit(), Some(8 << 20));
    }

    #[test]
    fn a_utility_vm_has_no_swap_and_none_of_the_hosts_processors() {
        let host = with(|h| h.memory = Some(64 << 20));
        let memory = memory(&host, Isolation::Hyperv).unwrap().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), None));
        let pinned = with(|h| h.cpuset_cpus = Some("0".into()));
        assert!(matches!(build(&pinned, Isolation::Hyperv, Vec::new()), Err(SpecError::NotAvailable(_))));
        assert!(build(&pinned, Isolation::Process, Vec::new()).is_ok());
    }

    #[test]
    fn oom_score_has_a_range() {
        assert_eq!(oom_score_adj(&HostConfig::default()).unwrap(), Some(0));
        assert!(oom_score_adj(&with(|h| h.oom_score_adj = Some(1001))).is_err());
    }
}
