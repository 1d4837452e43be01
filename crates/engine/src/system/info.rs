//! `GET /info`.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use image::registry::RegistrySettings;
use proto::control::{Accelerator, HostProbe};
use serde_json::{Map, Value, json};

use super::host::{self, Cgroups};
use super::probe::Probe;
use crate::clock::Timestamp;
use crate::engine::Engine;

/// Everything about engine and host, in the fields that the docker CLI prints, and under `Bulkhead` what it does not know.
pub(super) async fn info(State(engine): State<Arc<Engine>>, Extension(probe): Extension<Arc<Probe>>) -> Json<Value> {
    let probe = probe.known(&engine).await;
    let cgroups = Cgroups::read(Path::new("/sys/fs/cgroup"));
    let mut fields = Map::new();
    for part in [
        about_engine(&engine),
        about_containers(&engine),
        about_host(),
        about_limits(&cgroups),
        about_isolation(&engine, &probe),
        not_there(&engine.registries.settings()),
    ] {
        if let Value::Object(part) = part {
            fields.extend(part);
        }
    }
    fields.insert("SecurityOptions".into(), json!(security_options(&cgroups)));
    fields.insert("Warnings".into(), json!(warnings(&engine, &probe, &cgroups)));
    Json(Value::Object(fields))
}

fn about_engine(engine: &Engine) -> Value {
    let settings = &engine.settings;
    json!({
        "ID": engine.id,
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "DockerRootDir": settings.data_root,
        "Driver": "erofs",
        "DriverStatus": [
            ["Layers", "EROFS files, shared by both isolations"],
            ["Changes (process)", "overlay upper folder"],
            ["Changes (hyperv)", "sparse disk file"],
        ],
        "LoggingDriver": settings.container_defaults.log_driver,
        "CgroupDriver": "cgroupfs",
        "Debug": engine.changeable().debug,
        "NFd": host::open_descriptors(),
        "NGoroutines": 0,
        "NEventsListener": 0,
        "SystemTime": Timestamp::now().to_rfc3339_nano(),
        "LiveRestoreEnabled": true,
        "ExperimentalBuild": false,
    })
}

fn about_containers(engine: &Engine) -> Value {
    let words: Vec<&str> = engine.containers.all().iter().map(|container| container.record().phase.word()).collect();
    let count = |wanted: &[&str]| words.iter().filter(|word| wanted.contains(word)).count();
    json!({
        "Containers": words.len(),
        "ContainersRunning": count(&["running", "restarting"]),
        "ContainersPaused": count(&["paused"]),
        "ContainersStopped": count(&["created", "exited"]),
        "Images": engine.images.list().len(),
    })
}

fn about_host() -> Value {
    let kernel = host::kernel();
    let (system, version) = host::operating_system();
    json!({
        "Name": kernel.node,
        "KernelVersion": kernel.release,
        "Architecture": kernel.machine,
        "OSType": "linux",
        "OperatingSystem": system,
        "OSVersion": version,
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": host::memory_bytes(),
        "IPv4Forwarding": true,
        "BridgeNfIptables": false,
        "BridgeNfIp6tables": false,
    })
}

fn about_limits(cgroups: &Cgroups) -> Value {
    json!({
        "CgroupVersion": cgroups.version,
        "MemoryLimit": cgroups.memory,
        "SwapLimit": cgroups.swap,
        "KernelMemory": false,
        "KernelMemoryTCP": false,
        "CpuCfsPeriod": cgroups.cpu_quota,
        "CpuCfsQuota": cgroups.cpu_quota,
        "CPUShares": cgroups.cpu_shares,
        "CPUSet": cgroups.cpuset,
        "PidsLimit": cgroups.pids,
        "OomKillDisable": cgroups.version == "1",
    })
}

/// The walls. The docker CLI shows an isolation only for Windows, so labels and runtimes say it as well.
fn about_isolation(engine: &Engine, probe: &HostProbe) -> Value {
    let default = engine.settings.default_isolation.as_str();
    let boundary = probe.accelerator.map(Accelerator::boundary);
    let available = probe.accelerator.is_some() && probe.missing.is_empty();
    let shim = json!({"path": engine.settings.shim});
    let mut labels = engine.changeable().labels.clone();
    labels.extend([
        format!("dev.bulkhead.isolation.default={default}"),
        format!("dev.bulkhead.hyperv.available={available}"),
        format!(
            "dev.bulkhead.hyperv.accelerator={}",
            probe.accelerator.map_or("none (not available)", Accelerator::as_str)
        ),
        format!("dev.bulkhead.hyperv.hypervisor={}", probe.hypervisor.as_deref().unwrap_or("none (not available)")),
        format!("dev.bulkhead.hyperv.boundary={}", boundary.unwrap_or("none (not available)")),
    ]);
    json!({
        "Isolation": default,
        "Runtimes": {"process": shim, "hyperv": shim, "io.containerd.bulkhead.v2": shim},
        "DefaultRuntime": default,
        "Labels": labels,
        "Bulkhead": {
            "DefaultIsolation": default,
            "BoundaryRequired": engine.settings.boundary_required,
            "Standby": engine.standby.word(),
            "TemplateStore": engine.settings.template_store,
            "GuestImage": engine.settings.guest_image,
            "ExecRoot": engine.settings.exec_root,
            "Hyperv": {
                "Available": available,
                "Accelerator": probe.accelerator.map(Accelerator::as_str),
                "Boundary": boundary,
                "Reason": probe.accelerator_reason,
                "Missing": probe.missing,
                "Hypervisor": probe.hypervisor,
                "Qemu": probe.qemu,
                "GuestKernel": probe.guest_kernel,
            },
        },
    })
}

/// What clients expect to be there and this engine has not.
fn not_there(registries: &RegistrySettings) -> Value {
    let no_commit = json!({"ID": "", "Expected": ""});
    let named = registries.insecure.iter().filter(|entry| entry.contains('/')).map(String::as_str);
    let networks: Vec<&str> = ["127.0.0.0/8", "::1/128"].into_iter().chain(named).collect();
    json!({
        "SystemStatus": null,
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"], "Authorization": null, "Log": ["json-file", "local"]},
        "RegistryConfig": {
            "AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": [],
            "InsecureRegistryCIDRs": networks, "IndexConfigs": indexes(registries), "Mirrors": registries.mirrors,
        },
        "IndexServerAddress": "https://index.docker.io/v1/",
        "GenericResources": null,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "ClusterStore": "",
        "ClusterAdvertise": "",
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null,
        },
        "InitBinary": "docker-init",
        "ContainerdCommit": no_commit,
        "RuncCommit": no_commit,
        "InitCommit": no_commit,
        "ProductLicense": "",
        "DefaultAddressPools": [],
    })
}

/// Docker Hub, and the registries that may be insecure, in dockerd's form.
fn indexes(registries: &RegistrySettings) -> Value {
    let index = |name: &str, mirrors: &[String], secure: bool, official: bool| json!({"Name": name, "Mirrors": mirrors, "Secure": secure, "Official": official});
    let insecure = registries.insecure.iter().filter(|entry| !entry.contains('/'));
    let mut all: serde_json::Map<String, Value> =
        insecure.map(|name| (name.clone(), index(name, &[], false, false))).collect();
    all.insert("docker.io".into(), index("docker.io", &registries.mirrors, true, true));
    all.into()
}

fn security_options(cgroups: &Cgroups) -> Vec<&'static str> {
    let mut options = vec!["name=seccomp,profile=builtin"];
    if cgroups.version == "2" {
        options.push("name=cgroupns");
    }
    options
}

fn warnings(engine: &Engine, probe: &HostProbe, cgroups: &Cgroups) -> Vec<String> {
    let mut warnings = Vec::new();
    match probe.accelerator {
        _ if !probe.missing.is_empty() => warnings.extend(
            probe.missing.iter().map(|missing| format!("WARNING: isolation hyperv is not available: {missing}")),
        ),
        None => warnings.push(format!("WARNING: isolation hyperv is not available: {}", probe.accelerator_reason)),
        Some(Accelerator::Tcg) => warnings.push(format!(
            "WARNING: utility VMs run in software emulation here and are no security boundary: {}",
            probe.accelerator_reason
        )),
        Some(Accelerator::Kvm) => {}
    }
    if engine.settings.boundary_required && probe.accelerator != Some(Accelerator::Kvm) {
        warnings.push("WARNING: containers with isolation hyperv are refused, since a boundary is required".into());
    }
    for (has, what) in [
        (cgroups.memory, "memory limit"),
        (cgroups.swap, "swap limit"),
        (cgroups.cpu_quota, "cpu cfs quota"),
        (cgroups.pids, "pids limit"),
    ] {
        if !has {
            warnings.push(format!("WARNING: No {what} support"));
        }
    }
    warnings
}
