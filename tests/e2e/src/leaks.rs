//! What an engine left behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use sha2::Digest as _;

use crate::engine::EngineSettings;
use crate::patience::eventually;
use crate::procfs;

/// How often what is left is killed, and the time between: to look at all processes is no small thing.
const ROUNDS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a cgroup may take to go.
const SWEEP: Duration = Duration::from_secs(5);

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
    for _ in 0..ROUNDS {
        thaw(settings);
        let found = processes(settings);
        if found.is_empty() {
            break;
        }
        found.into_iter().for_each(|pid| procfs::kill(pid, Signal::KILL));
        std::thread::sleep(PAUSE);
    }
    for point in procfs::mounts_below(root).into_iter().rev() {
        let _ = unmount(point.as_str(), UnmountFlags::DETACH);
    }
    // A process that has been killed is in its cgroup until it has been reaped.
    eventually(SWEEP, || {
        remove_cgroups(settings);
        procfs::cgroup_folders(&settings.cgroup_parent).is_empty()
    });
    remove_networks(settings);
}

/// Lets go on what is paused: with cgroup version 1 it does not die otherwise.
fn thaw(settings: &EngineSettings) {
    for folder in procfs::cgroup_folders(&settings.cgroup_parent) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let state = entry.path().join("freezer.state");
            if state.exists() {
                // One that has gone is thawed.
                let _ = std::fs::write(state, "THAWED");
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::PathBuf;

    use crate::{HostOptions, TestHost, Wall, eventually, procfs};

    #[test]
    fn what_is_left_is_told_and_goes_even_if_it_is_paused() {
        let Some(host) = TestHost::prepare(Wall::Process, &HostOptions::default()) else { return };
        let parent = host.cgroup_parent().to_owned();
        let freezer = PathBuf::from(format!("/sys/fs/cgroup/freezer{parent}/left"));
        if std::fs::create_dir_all(&freezer).is_err() {
            return crate::skip("needs cgroup version 1");
        }
        let mut left = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(freezer.join("cgroup.procs"), left.id().to_string()).unwrap();
        std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
        let frozen = || std::fs::read_to_string(freezer.join("freezer.state")).unwrap().trim() == "FROZEN";
        assert!(eventually(std::time::Duration::from_secs(5), frozen));
        let told = catch_unwind(AssertUnwindSafe(|| drop(host))).unwrap_err();
        let told = told.downcast_ref::<String>().unwrap();
        assert!(told.contains(&format!("cgroup {}", freezer.display())) && told.contains("sleep 1000"), "{told}");
        let ended = left.try_wait().unwrap();
        assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");
        assert_eq!(procfs::cgroup_folders(&parent), Vec::<PathBuf>::new());
    }
}
