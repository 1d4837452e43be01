//! What every plain container has: Docker's defaults for one in a utility VM, which `Specialization` compares with.
//!
//! Source: moby `daemon/pkg/oci/defaults.go`; runtime-spec config-linux.md#default-devices; runc `libcontainer`.

/// The namespaces. The network's is the utility VM's own, in which there is nobody else.
pub const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mount", "network", "pid", "uts"];

/// One mount.
pub struct PlainMount {
    pub destination: &'static str,
    pub kind: &'static str,
    pub source: &'static str,
    pub options: &'static [&'static str],
}

/// The mounts, each after the one that it is in.
pub const MOUNTS: [PlainMount; 7] = [
    PlainMount { destination: "/proc", kind: "proc", source: "proc", options: &["nosuid", "noexec", "nodev"] },
    PlainMount {
        destination: "/dev",
        kind: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    PlainMount { destination: "/sys", kind: "sysfs", source: "sysfs", options: &["nosuid", "noexec", "nodev", "ro"] },
    PlainMount {
        destination: "/dev/pts",
        kind: "devpts",
        source: "devpts",
        options: &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    PlainMount {
        destination: "/dev/mqueue",
        kind: "mqueue",
        source: "mqueue",
        options: &["nosuid", "noexec", "nodev"],
    },
    PlainMount {
        destination: "/dev/shm",
        kind: "tmpfs",
        source: "shm",
        options: &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
    },
    PlainMount {
        destination: "/sys/fs/cgroup",
        kind: "cgroup",
        source: "cgroup",
        options: &["ro", "nosuid", "noexec", "nodev"],
    },
];

/// The folders of the root that the mounts are on.
pub const MOUNTED_FOLDERS: [&str; 3] = ["proc", "dev", "sys"];

/// The devices in /dev, character devices for everybody: name, major, minor.
pub const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The links in /dev, with what they lead to.
pub const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("kcore", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];
