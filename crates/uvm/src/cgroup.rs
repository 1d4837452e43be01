//! The host's cgroup of one utility VM, in every hierarchy there is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What the hypervisor needs beside the guest's memory.
const VMM_OVERHEAD_BYTES: u64 = 256 << 20;
/// What the hypervisor's own work may take beside the guest's processors, thousandths of one. Without it the guest's quota and
/// the host's, which is the second line, would both cut, at different moments: the container would get less than was asked for.
const VMM_OVERHEAD_MILLI: u64 = 500;
const CPU_PERIOD_US: u64 = 100_000;
/// The controllers with limits for a VM.
const LIMITING: [&str; 2] = ["cpu", "memory"];

/// What the host allows a VM's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The guest's memory.
    pub(crate) memory_bytes: u64,
    /// Thousandths of a processor, if limited.
    pub(crate) cpus_milli: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    /// v1: the controllers; v2: empty.
    controllers: Vec<String>,
    unified: bool,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// The host cgroup of one VM. Removed (if empty) on drop.
#[derive(Debug)]
pub(crate) struct HostCgroup {
    folders: Vec<PathBuf>,
}

impl HostCgroup {
    /// Makes `path` (relative to each hierarchy's root) where it is missing, sets limits, and moves the process there.
    ///
    /// When: blocking, 10 to 15 ms for the first hierarchy. A hierarchy that cannot be used is skipped with a warning:
    /// these limits are the second fence, the guest's own cgroup and the size of the VM are the first. Once `given_up` is set, no
    /// further hierarchy is begun with: the VM is being killed.
    pub(crate) fn attach(path: &str, pid: u32, limits: Limits, given_up: &AtomicBool) -> Self {
        let Some(relative) = relative(path) else {
            tracing::warn!(path, "not a cgroup path, the VM stays in its parent's cgroup");
            return Self { folders: Vec::new() };
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut folders = Vec::new();
        for hierarchy in hierarchies(&mounts) {
            if given_up.load(Ordering::Relaxed) {
                break;
            }
            let folder = hierarchy.mount_point.join(relative);
            match enter(&hierarchy, &folder, pid, Some(limits)) {
                Ok(()) => folders.push(folder),
                Err(error) => {
                    // A VM that has ended by now is no fault, and what was made for it must not stay.
                    if error.raw_os_error() != Some(libc::ESRCH) {
                        tracing::warn!(folder = %folder.display(), %error, "cannot put the VM into its cgroup");
                    }
                    drop(Self { folders: vec![folder] });
                }
            }
        }
        Self { folders }
    }
}

/// A cgroup's path below a hierarchy's root, if it is one.
fn relative(path: &str) -> Option<&Path> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (plain && !relative.as_os_str().is_empty()).then_some(relative)
}

/// Moves the calling process into a VM's cgroup, whose limits then count it too. Shape: `path` is relative to each hierarchy's
/// root. When: while the VM is there, which removes the cgroup; blocking, some 10 ms.
///
/// # Errors
/// A hierarchy that cannot be used, the last of them; the others are joined all the same.
pub fn join_cgroup(path: &str) -> io::Result<()> {
    let relative = relative(path).ok_or(io::ErrorKind::InvalidInput)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut joined = Ok(());
    for hierarchy in hierarchies(&mounts) {
        joined = enter(&hierarchy, &hierarchy.mount_point.join(relative), std::process::id(), None).and(joined);
    }
    joined
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            match fs::remove_dir(folder) {
                Ok(()) => {}
                // Removed already by the container's owner, or still used by it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EBUSY)) => {}
                Err(error) => tracing::warn!(folder = %folder.display(), %error, "cannot remove a cgroup"),
            }
        }
    }
}

fn enter(hierarchy: &Hierarchy, folder: &Path, pid: u32, limits: Option<Limits>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if hierarchy.has("cpuset") {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            inherit(&hierarchy.mount_point, folder, name)?;
        }
    }
    if hierarchy.unified
        && let Err(error) = hand_on(&hierarchy.mount_point, folder)
    {
        tracing::warn!(folder = %folder.display(), %error, "cannot hand the controllers on to the VM's cgroup");
    }
    fs::write(folder.join("cgroup.procs"), pid.to_string())?;
    for (name, value) in limits.map(|limits| settings(hierarchy, limits)).unwrap_or_default() {
        let file = folder.join(name);
        // A unified hierarchy shows only the controllers that its parent delegates.
        if file.exists()
            && let Err(error) = fs::write(&file, &value)
        {
            tracing::warn!(file = %file.display(), value, %error, "cannot limit the VM");
        }
    }
    Ok(())
}

/// In version 2 a cgroup has only those controllers that each one above it hands on, and nobody has done it for a new one.
/// What the hierarchy does not have (on a hybrid host version 1 has it) is left out.
fn hand_on(mount_point: &Path, folder: &Path) -> io::Result<()> {
    let mut above: Vec<&Path> =
        folder.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(mount_point)).collect();
    above.reverse();
    for folder in above {
        let listed = |name: &str| fs::read_to_string(folder.join(name));
        let (available, on) = (listed("cgroup.controllers")?, listed("cgroup.subtree_control")?);
        let has = |list: &str, name: &str| list.split_whitespace().any(|listed| listed == name);
        let missing = LIMITING.iter().filter(|name| has(&available, name) && !has(&on, name));
        let words: Vec<String> = missing.map(|name| format!("+{name}")).collect();
        if !words.is_empty() {
            fs::write(folder.join("cgroup.subtree_control"), words.join(" "))?;
        }
    }
    Ok(())
}

/// A new v1 cpuset is empty, and nothing can enter an empty one: fills in the parent's, from the top down.
fn inherit(mount_point: &Path, folder: &Path, name: &str) -> io::Result<()> {
    let mut below: Vec<&Path> = folder.ancestors().take_while(|ancestor| *ancestor != mount_point).collect();
    below.reverse();
    let mut value = fs::read_to_string(mount_point.join(name))?;
    for folder in below {
        let file = folder.join(name);
        let own = fs::read_to_string(&file)?;
        if own.trim().is_empty() {
            fs::write(&file, value.trim())?;
        } else {
            value = own;
        }
    }
    Ok(())
}

fn settings(hierarchy: &Hierarchy, limits: Limits) -> Vec<(&'static str, String)> {
    let memory = limits.memory_bytes.saturating_add(VMM_OVERHEAD_BYTES).to_string();
    let quota =
        limits.cpus_milli.map(|milli| milli.saturating_add(VMM_OVERHEAD_MILLI).saturating_mul(CPU_PERIOD_US) / 1000);
    let mut settings = Vec::new();
    if hierarchy.unified {
        settings.push(("memory.max", memory));
        settings.extend(quota.map(|quota| ("cpu.max", format!("{quota} {CPU_PERIOD_US}"))));
        return settings;
    }
    if hierarchy.has("memory") {
        settings.push(("memory.limit_in_bytes", memory));
    }
    if let (true, Some(quota)) = (hierarchy.has("cpu"), quota) {
        settings.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
        settings.push(("cpu.cfs_quota_us", quota.to_string()));
    }
    settings
}

/// Finds the hierarchies in the text of `/proc/self/mountinfo`; each v1 hierarchy once.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    const CONTROLLERS: [&str; 13] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "net_cls",
        "blkio",
        "perf_event",
        "net_prio",
        "hugetlb",
        "pids",
        "rdma",
    ];
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let (Some(kind), Some(_), Some(options)) = (right.next(), right.next(), right.next()) else { continue };
        let unified = kind == "cgroup2";
        if !unified && kind != "cgroup" {
            continue;
        }
        let controllers: Vec<String> =
            options.split(',').filter(|option| CONTROLLERS.contains(option)).map(ToOwned::to_owned).collect();
        let hierarchy = Hierarchy { mount_point: PathBuf::from(mount_point), controllers, unified };
        // systemd's named hierarchy has no controller and is not ours.
        let known = found.iter().any(|other| other.unified == unified && other.controllers == hierarchy.controllers);
        if !known && (unified || !hierarchy.controllers.is_empty()) {
            found.push(hierarchy);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:30 / /other/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_hosts_have_each_hierarchy_once() {
        let found = hierarchies(HYBRID);
        let points: Vec<_> = found.iter().map(|h| h.mount_point.to_str().unwrap()).collect();
        assert_eq!(points, ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]);
        assert!(found[0].unified && found[1].has("cpuacct"));
    }

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        let limits = Limits { memory_bytes: 1 << 30, cpus_milli: Some(1500) };
        let found = hierarchies(HYBRID);
        let memory = ((1_u64 << 30) + VMM_OVERHEAD_BYTES).to_string();
        assert_eq!(settings(&found[0], limits), [("memory.max", memory.clone()), ("cpu.max", "200000 100000".into())]);
        assert_eq!(settings(&found[1], limits)[1], ("cpu.cfs_quota_us", "200000".into()));
        assert_eq!(settings(&found[2], limits), [("memory.limit_in_bytes", memory)]);
        assert!(settings(&found[1], Limits { cpus_milli: None, ..limits }).is_empty());
    }

    #[test]
    fn controllers_are_handed_on_from_the_top_to_the_parent() {
        let top = tempfile::tempdir().unwrap();
        let (parent, vm) = (top.path().join("parent"), top.path().join("parent/vm"));
        fs::create_dir_all(&vm).unwrap();
        for (folder, available, on) in
            [(top.path(), "cpuset cpu memory", "memory\n"), (&parent, "cpu memory pids", ""), (&vm, "", "")]
        {
            fs::write(folder.join("cgroup.controllers"), available).unwrap();
            fs::write(folder.join("cgroup.subtree_control"), on).unwrap();
        }
        hand_on(top.path(), &vm).unwrap();
        let written = |folder: &Path| fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap();
        assert_eq!([written(top.path()), written(&parent), written(&vm)], ["+cpu", "+cpu +memory", ""]);
    }

    #[test]
    fn a_path_that_climbs_is_not_used() {
        for bad in ["", "/", "/../x", "a/../../b"] {
            let limits = Limits { memory_bytes: 0, cpus_milli: None };
            assert!(HostCgroup::attach(bad, u32::MAX, limits, &AtomicBool::new(false)).folders.is_empty(), "{bad}");
        }
    }

    #[test]
    fn what_is_given_up_gets_no_cgroup() {
        let path = format!("/bulkhead-uvm-given-up-{}", std::process::id());
        let limits = Limits { memory_bytes: 0, cpus_milli: None };
        assert!(HostCgroup::attach(&path, std::process::id(), limits, &AtomicBool::new(true)).folders.is_empty());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let made = hierarchies(&mounts).into_iter().map(|hierarchy| hierarchy.mount_point.join(&path[1..]));
        assert_eq!(made.filter(|folder| folder.exists()).count(), 0);
    }
}
