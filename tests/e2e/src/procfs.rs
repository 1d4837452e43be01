//! What the host sees of processes, mounts, loop devices and memory.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

/// Every process id of this machine.
///
/// # Panics
/// When /proc is not there.
#[must_use]
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// A process's command line, arguments joined by spaces; empty when it has gone or has none.
#[must_use]
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
}

/// The processes with exactly this command line.
#[must_use]
pub fn find_command(command: &str) -> Vec<i32> {
    pids().into_iter().filter(|&pid| command_line(pid) == command).collect()
}

/// The processes whose environment holds this entry, such as `NAME=value`.
#[must_use]
pub fn find_environment(entry: &str) -> Vec<i32> {
    let holds = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|own| own == entry.as_bytes())
    };
    pids().into_iter().filter(|&pid| holds(pid)).collect()
}

/// The processes in a cgroup whose path holds this text.
#[must_use]
pub fn find_cgroup(part: &str) -> Vec<i32> {
    let holds = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(part));
    pids().into_iter().filter(|&pid| holds(pid)).collect()
}

/// True while a process runs: not gone, and not a zombie.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Sends a signal; a process that has gone is no error.
///
/// # Panics
/// When `pid` is not positive.
pub fn kill(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a positive process id");
    let _ = rustix::process::kill_process(pid, signal);
}

/// Mount points of this mount namespace that lie below a folder.
#[must_use]
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}

/// Loop devices whose file lies below a folder.
#[must_use]
pub fn loops_below(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let backing = |path: &PathBuf| fs::read_to_string(path.join("loop/backing_file")).unwrap_or_default();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| Path::new(backing(path).trim()).starts_with(folder))
        .map(|path| path.display().to_string())
        .collect()
}

/// The folders of a cgroup in every hierarchy, v1 and v2.
#[must_use]
pub fn cgroup_folders(cgroup: &str) -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let relative = cgroup.trim_start_matches('/');
    let hierarchies = fs::read_dir(base).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(base.to_path_buf())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(relative))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Memory that would be free without this process, KiB. Source: proc_pid_smaps(5), `Private_Clean` and `Private_Dirty`.
#[must_use]
pub fn private_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// The parent of a process, 0 when it has gone.
#[must_use]
pub fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    fields.split(' ').nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// True when this process may do everything that the kernel knows.
#[must_use]
pub fn has_every_capability() -> bool {
    let number = |path: &str, radix| u64::from_str_radix(path.trim(), radix).unwrap_or(0);
    let last = number(&fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default(), 10);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or_default();
    number(bounding, 16) == u64::MAX >> (63 - last.min(63))
}

/// How many descriptors a process has open.
///
/// # Panics
/// When it has ended.
#[must_use]
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// Memory of a process that is in RAM, in bytes; 0 when it has gone.
#[must_use]
pub fn resident_bytes(pid: i32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// The most that [`resident_bytes`] ever was.
#[must_use]
pub fn peak_bytes(pid: i32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// A line of `/proc/PID/status`, which counts in KiB.
fn status_bytes(pid: i32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value =
        status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    value.unwrap_or(0) << 10
}
