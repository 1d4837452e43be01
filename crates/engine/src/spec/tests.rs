//! Facts about whole specs.

use std::path::Path;

use bollard::models::{ContainerConfig, HostConfig};
use oci_spec::runtime::{Capability, LinuxNamespaceType, Spec};
use proto::Isolation;

use super::*;

fn try_built(config: &ContainerConfig, host: &HostConfig, isolation: Isolation) -> Result<Spec, SpecError> {
    build(&SpecInput {
        isolation,
        config,
        host_config: host,
        mounts: &[],
        rootfs: Path::new("/r"),
        network: NetworkNamespace::Own,
        files: Path::new("/nonexistent"),
        hostname: config.hostname.as_deref().unwrap_or("box"),
        cgroup: "/bulkhead/c0ffee",
        terminal: false,
    })
}

fn shell() -> ContainerConfig {
    ContainerConfig { cmd: Some(vec!["sh".into()]), ..Default::default() }
}

fn built(host: &HostConfig, isolation: Isolation) -> Spec {
    try_built(&shell(), host, isolation).unwrap()
}

#[test]
fn the_default_container_is_confined_as_dockers() {
    for isolation in [Isolation::Process, Isolation::Hyperv] {
        let spec = built(&HostConfig::default(), isolation);
        let process = spec.process().as_ref().unwrap();
        let bounding = process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap();
        assert!(bounding.len() <= 14 && !bounding.contains(&Capability::SysAdmin));
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_some());
        assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".to_owned()));
        assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".to_owned()));
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/bulkhead/c0ffee")));
        assert!(linux.devices().is_none());
        let own: Vec<_> = linux.namespaces().iter().flatten().map(|namespace| namespace.typ()).collect();
        for typ in [
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Ipc,
            LinuxNamespaceType::Uts,
            LinuxNamespaceType::Network,
        ] {
            assert!(own.contains(&typ), "{typ}");
        }
        assert_eq!(spec.hostname().as_deref(), Some("box"));
    }
}

#[test]
fn a_folder_is_mounted_before_what_is_below_it() {
    let host = HostConfig {
        tmpfs: Some([("/dev/shm/deep".to_owned(), String::new()), ("/a".to_owned(), String::new())].into()),
        ..Default::default()
    };
    let spec = built(&host, Isolation::Process);
    let places: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect();
    for (at, place) in places.iter().enumerate() {
        assert!(!places[at + 1..].iter().any(|later| place.starts_with(later) && place != later), "{places:?}");
    }
}

#[test]
fn a_hyperv_containers_names_travel_as_files() {
    let spec = built(&HostConfig::default(), Isolation::Hyperv);
    let annotations = spec.annotations().as_ref().unwrap();
    let files: HashMap<String, String> = serde_json::from_str(&annotations[FILES_ANNOTATION]).unwrap();
    let hosts = spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new("/etc/hosts")).unwrap();
    assert!(files.contains_key(hosts.source().as_ref().unwrap().to_str().unwrap()));
    let process = built(&HostConfig::default(), Isolation::Process);
    assert!(!process.annotations().as_ref().unwrap().contains_key(FILES_ANNOTATION));
}

#[test]
fn our_annotations_cannot_be_forged() {
    let host = HostConfig {
        annotations: Some([(FILES_ANNOTATION.to_owned(), "{}".to_owned()), ("mine".to_owned(), "1".to_owned())].into()),
        group_add: Some(vec!["44".into(), "video".into()]),
        ..Default::default()
    };
    let config = ContainerConfig { user: Some("daemon".into()), ..shell() };
    let spec = try_built(&config, &host, Isolation::Process).unwrap();
    let annotations = spec.annotations().as_ref().unwrap();
    assert!(!annotations.contains_key(FILES_ANNOTATION));
    assert_eq!((annotations["mine"].as_str(), annotations[USER_ANNOTATION].as_str()), ("1", "daemon"));
    assert_eq!(annotations[GROUPS_ANNOTATION], "video");
}

#[test]
fn a_vsock_is_for_hyperv_containers_that_ask_for_it() {
    let asking = |value: &str| HostConfig {
        annotations: Some([(VSOCK_ANNOTATION.to_owned(), value.to_owned())].into()),
        ..Default::default()
    };
    let spec = built(&asking("true"), Isolation::Hyperv);
    assert_eq!(spec.annotations().as_ref().unwrap()[VSOCK_ANNOTATION], "true");
    for (value, isolation, why) in [
        ("true", Isolation::Process, "needs --isolation=hyperv"),
        ("/run/host.sock", Isolation::Hyperv, "neither true nor false"),
    ] {
        let refused = try_built(&shell(), &asking(value), isolation).unwrap_err();
        assert!(refused.kind() == ErrorKind::InvalidArgument && refused.to_string().contains(why), "{refused}");
    }
    built(&asking("false"), Isolation::Process);
}

#[test]
fn privileged_opens_the_kernel_it_runs_on_and_no_more() {
    let host = HostConfig { privileged: Some(true), ..Default::default() };
    let spec = built(&host, Isolation::Hyperv);
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none() && linux.masked_paths().as_ref().unwrap().is_empty());
    assert!(linux.devices().is_none(), "none of the host's devices");
    assert_eq!(linux.namespaces().as_ref().unwrap().len(), 6);
}

#[test]
fn a_required_boundary_needs_a_utility_vm() {
    let host = HostConfig { security_opt: Some(vec!["boundary=required".into()]), ..Default::default() };
    assert!(boundary_required(&host) && !boundary_required(&HostConfig::default()));
    assert!(try_built(&shell(), &host, Isolation::Hyperv).is_ok());
    assert!(try_built(&shell(), &host, Isolation::Process).is_err());
}

#[test]
fn host_names_are_checked() {
    for (name, good) in [("a b", true), ("ü", true), ("a\nb", false), (&"x".repeat(65), false)] {
        let config = ContainerConfig { hostname: Some(name.into()), ..shell() };
        assert_eq!(try_built(&config, &HostConfig::default(), Isolation::Process).is_ok(), good, "{name:?}");
    }
}

#[test]
fn there_is_no_driver_for_device_requests() {
    let request = bollard::models::DeviceRequest {
        capabilities: Some(vec![vec!["gpu".into(), "compute".into()]]),
        ..Default::default()
    };
    let host = HostConfig { device_requests: Some(vec![request]), ..Default::default() };
    let said = |isolation| try_built(&shell(), &host, isolation).unwrap_err();
    let process = said(Isolation::Process);
    assert_eq!(process.to_string(), "could not select device driver \"\" with capabilities: [[gpu compute]]");
    assert_eq!((process.kind(), said(Isolation::Hyperv).kind()), (ErrorKind::Internal, ErrorKind::NotImplemented));
}

#[test]
fn a_first_process_is_asked_for_unless_the_hosts_is_there() {
    let asks = |init: bool, pid_mode: &str| {
        let host = HostConfig { init: Some(init), pid_mode: Some(pid_mode.into()), ..Default::default() };
        built(&host, Isolation::Process).annotations().as_ref().unwrap().contains_key(INIT_ANNOTATION)
    };
    assert_eq!((asks(true, ""), asks(false, ""), asks(true, "host")), (true, false, false));
}

#[test]
fn a_spec_is_json_that_reads_back() {
    let spec = built(&HostConfig::default(), Isolation::Process);
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
}
