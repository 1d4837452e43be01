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
    if settings.network.is_some() {
        return left;
    }
    left.extend(links(settings).into_iter().map(|link| format!("link {link}")));
    let table = table(settings);
    left.extend(quietly("nft", &["list", "table", "inet", &table]).then(|| format!("firewall table {table}")));
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

/// Removes bridges and firewall rules.
fn remove_networks(settings: &EngineSettings) {
    for link in links(settings) {
        quietly("ip", &["link", "delete", &link]);
    }
    quietly("nft", &["delete", "table", "inet", &table(settings)]);
}

/// The mark, made of the data root, that the engine's bridges and rules bear.
fn mark(settings: &EngineSettings) -> String {
    hex::encode(sha2::Sha256::digest(settings.data_root.as_os_str().as_encoded_bytes()))[..6].to_owned()
}

fn table(settings: &EngineSettings) -> String {
    format!("bulkhead_{}", mark(settings))
}

/// The engine's bridges.
fn links(settings: &EngineSettings) -> Vec<String> {
    let alias = format!("bulkhead:{}", mark(settings));
    let all = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let ours = all
        .filter(|entry| std::fs::read_to_string(entry.path().join("ifalias")).is_ok_and(|found| found.trim() == alias));
    ours.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// True if the program succeeded; what is not there is none to remove or to list.
fn quietly(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
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
