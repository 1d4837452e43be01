//! The single checks.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::Finding;
use crate::output::quantity::binary_size;

/// Bytes: less than this is no room for images.
const SCARCE_BYTES: u64 = 2 << 30;
/// Bytes: below this not even a template fits.
const TOO_FEW_BYTES: u64 = 256 << 20;

/// What the engine found out about utility VMs.
pub(super) fn hyperv(probe: &Value) -> Vec<Finding> {
    let subject = "isolation hyperv";
    let reason = probe["accelerator_reason"].as_str().unwrap_or_default();
    let missing: Vec<&str> = probe["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !missing.is_empty() {
        return missing.into_iter().map(|missing| Finding::bad(subject, "not available", missing)).collect();
    }
    let mut findings = vec![match probe["accelerator"].as_str() {
        Some("kvm") => Finding::good(subject, format!("hardware virtualization: {reason}")),
        Some("tcg") => Finding::warning(
            subject,
            format!("works by software emulation, which is no security boundary: {reason}"),
            "for a boundary use a host with hardware virtualization; to refuse others, start bulkheadd with --require-boundary",
        ),
        _ => Finding::bad(
            subject,
            format!("not available: {reason}"),
            "install qemu-system-x86, and make the guest image",
        ),
    }];
    if let Some(hypervisor) = probe["hypervisor"].as_str() {
        findings.push(Finding::good("hypervisor", hypervisor));
    }
    if let Some(version) = probe["qemu"].as_str() {
        findings.push(Finding::good("qemu", format!("version {version}")));
    }
    if let Some(kernel) = probe["guest_kernel"].as_str() {
        findings.push(Finding::good("guest image", format!("kernel {kernel}")));
    }
    findings
}

/// Whether CLI and engine are of one version: the Engine API is stable, but what is ours beyond it may differ.
pub(super) fn same_version(engine: &str) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    (engine != own).then(|| {
        Finding::warning(
            "versions",
            format!("this program is {own}, the engine {engine}"),
            "restart the engine after an upgrade (containers go on): systemctl restart bulkhead; or use its own CLI",
        )
    })
}

/// Who may use the engine's socket, which is as much as being root.
pub(super) fn socket(path: &Path) -> Option<Finding> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(access(path, metadata.mode(), metadata.gid()))
}

fn access(path: &Path, mode: u32, gid: u32) -> Finding {
    let subject = "socket";
    let told = format!("{}, mode {:03o}, group {gid}", path.display(), mode & 0o777);
    if mode & 0o002 != 0 {
        let fix = format!("chmod o= {0}; then only root and the socket's group have this host", path.display());
        return Finding::bad(subject, format!("{told}: everybody may use it, and is root by it"), fix);
    }
    Finding::good(subject, told)
}

/// Whether disk files can be mounted: bounded changes (`--storage-opt size=`), and images where the kernel cannot mount
/// an EROFS file by itself.
pub(super) fn loop_devices() -> Finding {
    let subject = "loop";
    if Path::new("/dev/loop-control").exists() {
        return Finding::good(subject, "there are loop devices");
    }
    Finding::warning(
        subject,
        "there is no /dev/loop-control: containers with --storage-opt size= cannot be made, nor any on kernels before 6.12",
        "load it: modprobe loop",
    )
}

/// /dev/kvm as this user sees it. Whether it is any good, only the engine's probe can tell.
pub(super) fn kvm_device() -> Finding {
    let subject = "/dev/kvm";
    match std::fs::OpenOptions::new().read(true).write(true).open(subject) {
        Ok(_) => Finding::good(subject, "can be opened"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::warning(
            subject,
            "there is none: utility VMs run by software emulation",
            "switch on virtualization in the firmware, or nested virtualization, and load kvm_intel or kvm_amd",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::warning(
            subject,
            "this user may not open it (the engine, as root, may)",
            "add the user to group kvm if it is to use KVM itself",
        ),
        Err(error) => Finding::warning(subject, error.to_string(), "load kvm_intel or kvm_amd, and look at dmesg"),
    }
}

/// Which cgroups there are.
pub(super) fn cgroups() -> Finding {
    let subject = "cgroups";
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Finding::good(subject, "version 2");
    }
    let wanted = ["memory", "cpu", "pids", "devices"];
    let missing: Vec<&str> = wanted.into_iter().filter(|name| !root.join(name).exists()).collect();
    match missing.as_slice() {
        [] => Finding::good(subject, "version 1"),
        [..] if missing.len() == wanted.len() => {
            Finding::bad(subject, "not mounted", "mount them: mount -t cgroup2 none /sys/fs/cgroup")
        }
        _ => Finding::warning(
            subject,
            format!("version 1 without {}", missing.join(", ")),
            "limits of these kinds will fail; switch to version 2 (systemd.unified_cgroup_hierarchy=1)",
        ),
    }
}

/// A file system that the kernel must know, or be able to load.
pub(super) fn file_system(name: &'static str, without: &str) -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        return Finding::good(name, "the kernel has it");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let index = std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    if index.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko")))) {
        return Finding::good(name, "a module that is loaded when it is needed");
    }
    Finding::bad(
        name,
        format!("the kernel has it not: {without}"),
        format!("use a kernel with {name}, or load it: modprobe {name}"),
    )
}

/// The program by which networks are made.
pub(super) fn firewall() -> Finding {
    let subject = "nftables";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    if folders.map(|folder| folder.join("nft")).any(|program| program.is_file()) {
        return Finding::good(subject, "the program nft is there");
    }
    Finding::warning(
        subject,
        "there is no program nft: containers can have no network but none and host",
        "install nftables",
    )
}

/// Room where the engine keeps its data.
pub(super) fn disk_space(folder: &Path) -> Finding {
    let subject = "disk space";
    match rustix::fs::statvfs(folder) {
        Err(error) => Finding::warning(
            subject,
            format!("cannot look at {}: {error}", folder.display()),
            "look there as the user who runs the engine",
        ),
        Ok(found) => room(found.f_bavail.saturating_mul(found.f_frsize), folder),
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn room(bytes: u64, folder: &Path) -> Finding {
    let subject = "disk space";
    let told = format!("{} free in {}", binary_size(bytes as f64), folder.display());
    let fix = "remove what is not needed (bulkhead rmi, rm, template prune), or move --data-root";
    match bytes {
        0..TOO_FEW_BYTES => Finding::bad(subject, told, fix),
        TOO_FEW_BYTES..SCARCE_BYTES => Finding::warning(subject, told, fix),
        _ => Finding::good(subject, told),
    }
}

/// Memory that is free for containers.
#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .unwrap_or_default();
    let told = format!("{} available", binary_size((kib * 1024) as f64));
    if kib * 1024 < TOO_FEW_BYTES {
        Finding::warning(
            "memory",
            told,
            "stop what is not needed; a utility VM takes 64 MiB and what its container uses",
        )
    } else {
        Finding::good("memory", told)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn software_emulation_is_a_warning_and_a_lack_is_a_failure() {
        let emulated = json!({"accelerator": "tcg", "accelerator_reason": "r", "hypervisor": "qemu 7.2", "qemu": "7.2", "guest_kernel": "6.1", "missing": []});
        let findings = hyperv(&emulated);
        assert_eq!((findings[0].verdict, findings.len()), (Verdict::Warning, 4));
        assert!(findings[0].detail.contains("no security boundary"));
        let lacking = hyperv(&json!({"missing": ["install qemu-system-x86", "run make boot"]}));
        assert_eq!(lacking.len(), 2);
        assert!(lacking.iter().all(|finding| finding.verdict == Verdict::Bad));
        let hardware = hyperv(&json!({"accelerator": "kvm", "accelerator_reason": "r", "missing": []}));
        assert_eq!(hardware[0].verdict, Verdict::Good);
    }

    #[test]
    fn a_socket_for_everybody_and_another_version_are_told() {
        let of = |mode| access(Path::new("/s"), mode, 7);
        assert_eq!((of(0o140_660).verdict, of(0o140_666).verdict), (Verdict::Good, Verdict::Bad));
        assert!(of(0o140_666).fix.is_some_and(|fix| fix.contains("chmod")));
        assert_eq!(same_version(env!("CARGO_PKG_VERSION")), None);
        assert!(same_version("0.0.1").is_some_and(|finding| finding.fix.is_some()));
    }

    #[test]
    fn room_is_judged() {
        let of = |bytes| room(bytes, Path::new("/x")).verdict;
        assert_eq!((of(1 << 20), of(1 << 30), of(1 << 40)), (Verdict::Bad, Verdict::Warning, Verdict::Good));
        assert_eq!(file_system("no-such-file-system", "x").verdict, Verdict::Bad);
        assert_eq!(file_system("proc", "x").verdict, Verdict::Good);
    }
}
