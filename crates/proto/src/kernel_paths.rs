//! What of `/proc` and `/sys` a container does not get unless it asks: the engine writes it into specifications, and what is
//! made before the freeze for every plain container has it already, so both must mean the same.
//!
//! Source: moby `daemon/pkg/oci/defaults.go`.

/// Files and folders that show the host, or its hardware: hidden, where the kernel has them. In the order in which `docker inspect`
/// shows them.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Files and folders by which the kernel can be changed: cannot be written to.
pub const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
