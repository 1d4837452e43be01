//! Facts about the host, read from /proc, /sys and /etc.

use std::path::Path;

/// What the kernel calls itself.
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) machine: String,
    pub(super) node: String,
}

pub(super) fn kernel() -> Kernel {
    let names = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    Kernel { release: text(names.release()), machine: text(names.machine()), node: text(names.nodename()) }
}

/// The distribution's name and version, from os-release(5).
pub(super) fn operating_system() -> (String, String) {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let name = os_release_value(&text, "PRETTY_NAME").unwrap_or_else(|| "Linux".into());
    (name, os_release_value(&text, "VERSION_ID").unwrap_or_default())
}

fn os_release_value(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// Bytes of memory.
pub(super) fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo_kib(&text, "MemTotal").unwrap_or_default() * 1024
}

fn meminfo_kib(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// What the host's cgroups can limit.
pub(super) struct Cgroups {
    pub(super) version: &'static str,
    pub(super) memory: bool,
    pub(super) swap: bool,
    pub(super) cpu_quota: bool,
    pub(super) cpu_shares: bool,
    pub(super) cpuset: bool,
    pub(super) pids: bool,
}

impl Cgroups {
    pub(super) fn read(root: &Path) -> Self {
        if let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) {
            let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
            return Self {
                version: "2",
                memory: has("memory"),
                swap: has("memory"),
                cpu_quota: has("cpu"),
                cpu_shares: has("cpu"),
                cpuset: has("cpuset"),
                pids: has("pids"),
            };
        }
        let has = |file: &str| root.join(file).exists();
        Self {
            version: "1",
            memory: has("memory/memory.limit_in_bytes"),
            swap: has("memory/memory.memsw.limit_in_bytes"),
            cpu_quota: has("cpu/cpu.cfs_quota_us"),
            cpu_shares: has("cpu/cpu.shares"),
            cpuset: has("cpuset/cpuset.cpus"),
            pids: has("pids"),
        }
    }
}

/// Open descriptors of this process.
pub(super) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default()
}

/// The architecture in Go's words.
pub(super) fn go_architecture() -> &'static str {
    image::host_architecture()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host_are_read() {
        let text = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\n";
        assert_eq!(os_release_value(text, "PRETTY_NAME").as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(os_release_value(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release_value(text, "VERSION"), None);
        assert_eq!(meminfo_kib("MemFree: 1 kB\nMemTotal:       8040 kB\n", "MemTotal"), Some(8040));
        assert!(memory_bytes() > 0 && open_descriptors() > 0);
    }

    #[test]
    fn both_versions_of_cgroups_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("memory")).unwrap();
        std::fs::write(root.path().join("memory/memory.limit_in_bytes"), "").unwrap();
        let first = Cgroups::read(root.path());
        assert_eq!((first.version, first.memory, first.swap, first.pids), ("1", true, false, false));
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        let second = Cgroups::read(root.path());
        assert_eq!((second.version, second.swap, second.cpu_quota, second.pids), ("2", true, true, false));
    }
}
