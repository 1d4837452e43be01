//! `GET /containers/{id}/json`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use proto::vsock::VSOCK_SOCKET;
use serde_json::{Value, json};

use super::{links, network_view, size, usage, view};
use crate::container::mount_point::MountPoint;
use crate::container::{Container, kept};
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::query::Query;
use crate::spec;

/// Shows a container.
///
/// # Errors
/// 404.
pub async fn inspect(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Json<Value>> {
    let container = engine.containers.find(&id)?;
    let (looked_at, looking) = (Arc::clone(&container), Arc::clone(&engine));
    let mut shown = tokio::task::spawn_blocking(move || show(&looking, &looked_at)).await??;
    if query.flag("size") {
        let writable = size::writable_bytes(&container).await;
        shown["SizeRw"] = json!(writable);
        shown["SizeRootFs"] = json!(writable + size::image_bytes(&engine, &container));
    }
    Ok(Json(shown))
}

fn show(engine: &Engine, container: &Container) -> ApiResult<Value> {
    let record = container.record().clone();
    let path = |name: &str| kept(&container.dir, name).display().to_string();
    let mut command = record.command();
    let program = if command.is_empty() { String::new() } else { command.remove(0) };
    let log_path = container.log.as_ref().and_then(|log| log.shown_path());
    let log_path = log_path.map(|path| path.display().to_string()).unwrap_or_default();
    let exec_ids: Vec<String> = container.execs().values().filter(|e| e.is_running()).map(|e| e.id.clone()).collect();
    let mut host = view::host_config(&record);
    if !record.links.is_empty() {
        host["Links"] = json!(links::shown(engine, &record));
    }
    Ok(json!({
        "Id": record.id,
        "Created": record.created.to_rfc3339_nano(),
        "Path": program,
        "Args": command,
        "State": view::state(&record),
        "Image": record.image_id,
        "ResolvConfPath": path("resolv.conf"),
        "HostnamePath": path("hostname"),
        "HostsPath": path("hosts"),
        "LogPath": log_path,
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts,
        "Driver": "erofs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if exec_ids.is_empty() { Value::Null } else { json!(exec_ids) },
        "HostConfig": host,
        "GraphDriver": view::graph_driver(engine, container),
        "Mounts": record.mounts.iter().map(MountPoint::view).collect::<Vec<_>>(),
        "Config": view::config(&record),
        "NetworkSettings": network_view::settings(&record, &engine.networks),
        "Bulkhead": ours(engine, container),
    }))
}

/// What Docker has no place for.
fn ours(engine: &Engine, container: &Container) -> Value {
    let record = container.record().clone();
    let vm = record.utility_vm.as_ref();
    let boundary = match vm {
        Some(vm) => Some(vm.accelerator.boundary()),
        None if record.isolation == proto::Isolation::Process => Some("process (shared kernel)"),
        None => None,
    };
    json!({
        "Isolation": record.isolation,
        "Boundary": boundary,
        "Accelerator": vm.map(|vm| vm.accelerator),
        "Backend": vm.map(|vm| &vm.backend),
        "Template": vm.map(|vm| &vm.template),
        "TemplateBuilt": vm.map(|vm| vm.template_built),
        "BootId": vm.map(|vm| &vm.boot_id),
        "EntropyFingerprint": vm.map(|vm| &vm.entropy_fingerprint),
        "ForkMicroseconds": vm.map(|vm| vm.fork_us),
        "StandbyMicroseconds": vm.and_then(|vm| vm.standby_us),
        "ClockErrorMicroseconds": vm.map(|vm| vm.clock_error_us),
        "VmmPids": vm.filter(|_| record.phase.is_running()).map(|vm| &vm.vmm_pids),
        "ShimPid": container.running().ok().map(|running| running.shim_pid),
        "VsockSocket": vsock_socket(engine, container),
        "ShimLog": usage::shim_log(engine, container),
        "HostMemoryBytes": usage::host_memory_bytes(container),
    })
}

/// Where the host's programs find a container's vsock, while it runs and if it has one.
fn vsock_socket(engine: &Engine, container: &Container) -> Option<String> {
    let asks = spec::asks_for_vsock(&container.host().ok()?, container.isolation).ok()?;
    let is_there = asks && container.record().phase.is_running();
    is_there.then(|| engine.bundle(&container.id).join(VSOCK_SOCKET).display().to_string())
}
