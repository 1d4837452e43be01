//! What an engine left behind.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use sha2::Digest as _;

use crate::engine::EngineSettings;
use crate::procfs;

/// One line for everything that should have gone with the containers, while the engine still runs.
pub(crate) fn container_files(settings: &EngineSettings) -> Vec<String> {
    let mut left = Vec::new();
    for folder in
        [settings.data_root.join("containers"), settings.exec_root.join("containers"), settings.exec_root.join("s")]
    {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
    }
    left
}

/// One line for everything that should have gone with the engine.
pub(crate) fn after_engine(root: &Path, settings: &EngineSettings) -> Vec<String> {
    let mut left = Vec::new();
    for pid in processes(settings) {
        left.push(format!("process {pid}: {}", procfs::command_line(pid)));
    }
    left.extend(procfs::mounts_below(root).into_iter().map(|point| format!("mount {point}")));
    left.extend(procfs::loops_below(root).into_iter().map(|device| format!("loop device {device}")));
    for folder in procfs::cgroup_folders(&settings.cgroup_parent) {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.path().is_dir());
        left.extend(inner.map(|entry| format!("cgroup {}", entry.path().display())));
    }
    left
}

/// Live processes that the engine or its containers started.
pub(crate) fn processes(settings: &EngineSettings) -> Vec<i32> {
    let mut found = procfs::find_environment(&format!("{}={}", settings.marker.0, settings.marker.1));
    found.extend(procfs::find_cgroup(&format!("{}/", settings.cgroup_parent)));
    found.sort_unstable();
    found.dedup();
    found.retain(|&pid| procfs::is_alive(pid));
    found
}

/// Takes everything away by force, after a failed test.
pub(crate) fn sweep(root: &Path, settings: &EngineSettings) {
    for _ in 0..3 {
        processes(settings).into_iter().for_each(|pid| procfs::kill(pid, Signal::KILL));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for point in procfs::mounts_below(root).into_iter().rev() {
        let _ = unmount(point.as_str(), UnmountFlags::DETACH);
    }
    remove_cgroups(settings);
    remove_networks(settings);
}

/// Removes bridges and firewall rules, which bear a mark made of the data root.
fn remove_networks(settings: &EngineSettings) {
    let digest = hex::encode(sha2::Sha256::digest(settings.data_root.as_os_str().as_encoded_bytes()));
    let tag = &digest[..6];
    let quietly = |program: &str, args: &[&str]| {
        // What is not there is none to remove.
        let _ = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    };
    for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let alias = std::fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
        if alias.trim() == format!("bulkhead:{tag}") {
            quietly("ip", &["link", "delete", &entry.file_name().to_string_lossy()]);
            quietly("nft", &["delete", "table", "inet", &format!("bulkhead_{tag}")]);
        }
    }
}

/// Removes the cgroups of the engine's parent cgroup, those below it first.
pub(crate) fn remove_cgroups(settings: &EngineSettings) {
    for folder in procfs::cgroup_folders(&settings.cgroup_parent) {
        remove_cgroup(&folder);
    }
}

fn remove_cgroup(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    drop(std::fs::remove_dir(folder));
}
