//! Devices: what every container may use, `--device`, `--device-cgroup-rule`, and all of the host's when privileged.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bollard::models::{DeviceMapping, HostConfig};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use proto::Isolation;

use super::SpecError;

/// Character devices of every container: null, zero, full, random, urandom, tty, console, ptmx, and pseudo terminals
/// (major 136, any minor). Source: moby `daemon/pkg/oci/defaults.go`, runc `specconv.AllowedDevices`.
const ALLOWED: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Device nodes to make, and who may use what.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
}

/// Decides a container's devices. Shape: rules are in the order in which the kernel applies them, "deny all" first.
pub(super) fn decide(host: &HostConfig, isolation: Isolation) -> Result<Devices, SpecError> {
    let asked = host.devices.as_deref().unwrap_or_default();
    let request = host.device_requests.iter().flatten().next();
    if isolation == Isolation::Hyperv && (request.is_some() || !asked.is_empty()) {
        return Err(SpecError::NotAvailable(
            "--device and --gpus cannot be used with isolation hyperv: a utility VM has none of the host's devices"
                .into(),
        ));
    }
    if let Some(request) = request {
        let capabilities = request.capabilities.iter().flatten().map(|all| format!("[{}]", all.join(" ")));
        return Err(SpecError::DeviceDriver {
            driver: request.driver.clone().unwrap_or_default(),
            capabilities: capabilities.collect::<Vec<_>>().join(" "),
        });
    }
    if host.privileged.unwrap_or_default() {
        let nodes = if isolation == Isolation::Process { all_of_the_host()? } else { Vec::new() };
        return Ok(Devices { nodes, rules: vec![rule(true, LinuxDeviceType::A, None, None, "rwm")] });
    }
    let mut devices = Devices { nodes: Vec::new(), rules: vec![rule(false, LinuxDeviceType::A, None, None, "rwm")] };
    devices
        .rules
        .extend(ALLOWED.iter().map(|(major, minor)| rule(true, LinuxDeviceType::C, Some(*major), *minor, "rwm")));
    for mapping in asked {
        devices.map(mapping)?;
    }
    for text in host.device_cgroup_rules.as_deref().unwrap_or_default() {
        devices.rules.push(parse_rule(text)?);
    }
    Ok(devices)
}

/// The kernel's major and minor number. Source: glibc `gnu_dev_major`.
pub(super) fn numbers(device: u64) -> (i64, i64) {
    (i64::from(rustix::fs::major(device)), i64::from(rustix::fs::minor(device)))
}

impl Devices {
    /// One `--device HOST[:CONTAINER[:PERMISSIONS]]`; a folder stands for all devices in it.
    fn map(&mut self, mapping: &DeviceMapping) -> Result<(), SpecError> {
        let on_host = PathBuf::from(mapping.path_on_host.as_deref().unwrap_or_default());
        let inside = mapping.path_in_container.as_deref().filter(|path| !path.is_empty());
        let inside = inside.map_or_else(|| on_host.clone(), PathBuf::from);
        let permissions = mapping.cgroup_permissions.as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm");
        if !permissions.bytes().all(|b| matches!(b, b'r' | b'w' | b'm')) {
            return Err(SpecError::Security(format!("invalid device mode: {permissions}")));
        }
        if !on_host.is_absolute() || !inside.is_absolute() {
            return Err(SpecError::Security(format!("bad device specification: {}", on_host.display())));
        }
        let failed = |source: io::Error| SpecError::CustomDevice {
            path: on_host.clone(),
            source: match source.kind() {
                // In Go's words, by which docker's CLI knows its exit code.
                io::ErrorKind::NotFound => io::Error::other("no such file or directory"),
                _ => source,
            },
        };
        let metadata = std::fs::metadata(&on_host).map_err(failed)?;
        if !metadata.is_dir() {
            let node = node(&inside, &metadata).ok_or_else(|| {
                failed(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a device nor a folder"))
            })?;
            self.add(node, permissions);
            return Ok(());
        }
        for entry in std::fs::read_dir(&on_host).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = std::fs::metadata(entry.path()).map_err(failed)?;
            if let Some(node) = node(&inside.join(entry.file_name()), &metadata) {
                self.add(node, permissions);
            }
        }
        Ok(())
    }

    fn add(&mut self, node: LinuxDevice, permissions: &str) {
        self.rules.push(rule(true, node.typ(), Some(node.major()), Some(node.minor()), permissions));
        self.nodes.push(node);
    }
}

fn node(path: &Path, metadata: &Metadata) -> Option<LinuxDevice> {
    let kind = metadata.file_type();
    let typ = if kind.is_block_device() {
        LinuxDeviceType::B
    } else if kind.is_char_device() {
        LinuxDeviceType::C
    } else {
        return None;
    };
    let (major, minor) = numbers(metadata.rdev());
    let mut node = LinuxDevice::default();
    node.set_path(path.to_owned()).set_typ(typ).set_major(major).set_minor(minor);
    node.set_file_mode(Some(metadata.mode() & 0o7777)).set_uid(Some(metadata.uid())).set_gid(Some(metadata.gid()));
    Some(node)
}

fn rule(
    allow: bool,
    typ: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    permissions: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_typ(Some(typ)).set_major(major).set_minor(minor).set_access(Some(permissions.to_owned()));
    rule
}

/// A rule such as `c 1:* rmw`.
fn parse_rule(text: &str) -> Result<LinuxDeviceCgroup, SpecError> {
    let invalid = || SpecError::Security(format!("invalid device cgroup rule format: '{text}'"));
    let fields: Vec<&str> = text.split(' ').collect();
    let [typ, device, permissions] = fields[..] else { return Err(invalid()) };
    let typ = match typ {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return Err(invalid()),
    };
    let (major, minor) = device.split_once(':').ok_or_else(invalid)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits => digits.parse::<u32>().map(|number| Some(i64::from(number))).map_err(|_| invalid()),
    };
    let valid = (1..=3).contains(&permissions.len()) && permissions.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'));
    if !valid {
        return Err(invalid());
    }
    Ok(rule(true, typ, number(major)?, number(minor)?, permissions))
}

/// Folders of /dev that a container has of its own, or that are no devices.
const NOT_PASSED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Every device node below the host's /dev, for a privileged process container.
fn all_of_the_host() -> Result<Vec<LinuxDevice>, SpecError> {
    let mut nodes = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        let failed = |source| SpecError::Device { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // What went away since the folder was read is no device any more.
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if metadata.is_dir() && !NOT_PASSED.contains(&name) {
                folders.push(path);
            } else if !matches!(name, "console" | "tty" | "ptmx" | "null" | "zero" | "full" | "random" | "urandom") {
                nodes.extend(node(&path, &metadata));
            }
        }
    }
    nodes.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(path: &str, permissions: &str) -> HostConfig {
        let mapping = DeviceMapping {
            path_on_host: Some(path.into()),
            path_in_container: Some("/dev/given".into()),
            cgroup_permissions: Some(permissions.into()),
        };
        HostConfig { devices: Some(vec![mapping]), ..Default::default() }
    }

    #[test]
    fn nothing_but_harmless_character_devices_by_default() {
        let devices = decide(&HostConfig::default(), Isolation::Process).unwrap();
        assert!(devices.nodes.is_empty());
        let (first, rest) = devices.rules.split_first().unwrap();
        assert!(!first.allow() && first.typ() == Some(LinuxDeviceType::A));
        assert_eq!(rest.len(), 9);
        assert!(rest.iter().all(|rule| rule.allow() && rule.typ() == Some(LinuxDeviceType::C)));
    }

    #[test]
    fn a_device_of_the_host_is_given_by_its_numbers() {
        let devices = decide(&mapping("/dev/null", "r"), Isolation::Process).unwrap();
        let node = &devices.nodes[0];
        assert_eq!((node.major(), node.minor(), node.path().to_str()), (1, 3, Some("/dev/given")));
        assert_eq!(devices.rules.last().unwrap().access().as_deref(), Some("r"));
        assert!(matches!(decide(&mapping("/dev/nope", "r"), Isolation::Process), Err(SpecError::CustomDevice { .. })));
        assert!(matches!(
            decide(&mapping("/etc/passwd", "r"), Isolation::Process),
            Err(SpecError::CustomDevice { .. })
        ));
        assert!(decide(&mapping("/dev/null", "rx"), Isolation::Process).is_err());
        assert!(matches!(decide(&mapping("/dev/null", "r"), Isolation::Hyperv), Err(SpecError::NotAvailable(_))));
    }

    #[test]
    fn cgroup_rules_are_parsed_strictly() {
        let rule = parse_rule("c 13:* rwm").unwrap();
        assert_eq!((rule.major(), rule.minor()), (Some(13), None));
        for bad in ["", "c 13", "x 1:1 r", "c 1:1 rx", "c 1:a r", "c 1:1 rwmr", "c -1:1 r"] {
            assert!(parse_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn privileged_in_a_utility_vm_gets_none_of_the_hosts_devices() {
        let host = HostConfig { privileged: Some(true), ..Default::default() };
        let devices = decide(&host, Isolation::Hyperv).unwrap();
        assert!(devices.nodes.is_empty() && devices.rules[0].allow());
        let nodes = decide(&host, Isolation::Process).unwrap().nodes;
        assert!(nodes.iter().all(|node| !node.path().starts_with("/dev/pts")));
    }
}
