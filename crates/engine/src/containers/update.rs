//! `POST /containers/{id}/update`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use bollard::models::HostConfig;
use proto::control::{Accelerator, UtilityVmRequest};
use proto::{ErrorKind, Isolation};
use serde_json::{Value, json};

use super::{bundle, restart_policy};
use crate::body;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::spec::MIN_MEMORY_BYTES;

/// What may be changed while a container lives. Source: Docker Engine API, `ContainerUpdate`.
const CHANGEABLE: &[&str] = &[
    "CpuShares",
    "Memory",
    "BlkioWeight",
    "CpuPeriod",
    "CpuQuota",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "CpusetCpus",
    "CpusetMems",
    "MemoryReservation",
    "MemorySwap",
    "NanoCpus",
    "PidsLimit",
];

/// Changes a container's limits and restart policy.
///
/// # Errors
/// 404; 400 for a limit that cannot be; what the shim says when it cannot be set on the running container.
pub async fn update(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let container = engine.containers.find(&id)?;
    let wanted: Value = body::json(request).await?;
    let _lifecycle = container.hold().await?;
    let before = container.record().host.clone();
    let cannot = |error: ApiError| error.context(format!("Cannot update container {}", container.id));
    // What the client asked for wrongly is told as it is.
    let told = |error: ApiError| if error.kind == ErrorKind::InvalidArgument { error } else { cannot(error) };
    let after = merge(&before, &wanted).map_err(told)?;
    let (was, is) = (body::typed::<HostConfig, _>(&before)?, body::typed::<HostConfig, _>(&after)?);
    if container.isolation == Isolation::Hyperv && container.running().is_ok() {
        fits_utility_vm(&was, &is, processors_of(&container)).map_err(cannot)?;
    }
    container.record().host = after;
    if let Err(error) = apply(&engine, &container).await {
        container.record().host = before;
        return Err(told(error));
    }
    container.save().await?;
    container.emit(&engine.events, "update", &[]);
    Ok(Json(json!({ "Warnings": [] })))
}

/// A utility VM has the memory and processors that it was started with; within them the guest's limits can change.
fn fits_utility_vm(before: &HostConfig, after: &HostConfig, nominal_cpus: u64) -> ApiResult<()> {
    let memory = |host: &HostConfig| host.memory.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
    let has_bytes = memory(before).max(UtilityVmRequest::NOMINAL_MEMORY_BYTES);
    if memory(after) > has_bytes {
        return Err(ApiError::invalid(format!(
            "the container's utility VM has {has_bytes} bytes of memory while it runs; stop it, update it and start it again"
        )));
    }
    let milli = |host: &HostConfig| bundle::cpus_milli(host).unwrap_or(0);
    let has_cpus = milli(before).div_ceil(1000).max(nominal_cpus);
    if milli(after) > has_cpus * 1000 {
        return Err(ApiError::invalid(format!(
            "the container's utility VM has {has_cpus} processors while it runs; stop it, update it and start it again"
        )));
    }
    Ok(())
}

/// The processors that a utility VM has at least. Source: `uvm::MachineConfig::for_request`.
fn processors_of(container: &Container) -> u64 {
    let record = container.record();
    match record.utility_vm.as_ref().map(|vm| vm.accelerator) {
        Some(Accelerator::Kvm) => 2,
        Some(Accelerator::Tcg) | None => 1,
    }
}

/// What contradicts what is set already. The texts are dockerd's.
fn check_conflicts(before: &Value, wanted: &serde_json::Map<String, Value>) -> ApiResult<()> {
    let new = |name: &str| wanted.get(name).and_then(Value::as_i64).unwrap_or(0);
    let old = |name: &str| before[name].as_i64().unwrap_or(0);
    let conflict = |text: &str| Err(ApiError::conflict(format!("Conflicting options: {text}")));
    for (one, other, names) in [
        ("NanoCpus", "CpuPeriod", ("Nano CPUs", "CPU Period")),
        ("NanoCpus", "CpuQuota", ("Nano CPUs", "CPU Quota")),
        ("CpuPeriod", "NanoCpus", ("CPU Period", "NanoCPUs")),
        ("CpuQuota", "NanoCpus", ("CPU Quota", "NanoCPUs")),
    ] {
        if new(one) > 0 && old(other) > 0 {
            return conflict(&format!("{} cannot be updated as {} has already been set", names.0, names.1));
        }
    }
    // Also where none is set, as dockerd has it. What is too little for any container is told first.
    if new("MemorySwap") == 0 && new("Memory") >= MIN_MEMORY_BYTES && new("Memory") > old("MemorySwap") {
        return Err(ApiError::conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        ));
    }
    Ok(())
}

/// Zero and nothing leave a limit as it is.
fn merge(before: &Value, wanted: &Value) -> ApiResult<Value> {
    let Some(wanted) = wanted.as_object() else { return Err(ApiError::invalid("invalid JSON: an object is expected")) };
    check_conflicts(before, wanted)?;
    let mut after = before.clone();
    let is_given =
        |value: &Value| !matches!(value, Value::Null) && value.as_i64() != Some(0) && value.as_str() != Some("");
    for name in CHANGEABLE {
        if let Some(value) = wanted.get(*name).filter(|value| is_given(value)) {
            after[*name] = value.clone();
        }
    }
    if let Some(policy) =
        wanted.get("RestartPolicy").filter(|policy| policy["Name"].as_str().is_some_and(|n| !n.is_empty()))
    {
        if after["AutoRemove"] == json!(true) && policy["Name"] != json!("no") {
            return Err(ApiError::conflict(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        restart_policy::validate(policy)?;
        after["RestartPolicy"] = policy.clone();
    }
    Ok(after)
}

/// Sets the limits of a running container; one that does not run gets them at its next start.
async fn apply(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    let spec = bundle::build_spec(engine, container)?;
    let Ok(running) = container.running() else { return Ok(()) };
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let text = serde_json::to_vec(&resources).map_err(|error| ApiError::caused("cannot write the limits", &error))?;
    Ok(running.task.update(text).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_changes() {
        let before = json!({ "Memory": 1, "MemorySwap": 9, "CpuShares": 2, "AutoRemove": false, "Privileged": false });
        let wanted = json!({ "Memory": 5, "CpuShares": 0, "CpusetCpus": "", "Privileged": true, "RestartPolicy": { "Name": "" } });
        let after = merge(&before, &wanted).unwrap();
        assert_eq!(
            after,
            json!({ "Memory": 5, "MemorySwap": 9, "CpuShares": 2, "AutoRemove": false, "Privileged": false })
        );
    }

    #[test]
    fn a_utility_vm_does_not_grow_while_it_runs() {
        let host = |memory, nano_cpus| HostConfig { memory, nano_cpus, ..HostConfig::default() };
        let plain = host(None, None);
        fits_utility_vm(&plain, &host(Some(512 << 20), Some(1_000_000_000)), 1).unwrap();
        fits_utility_vm(&host(Some(3 << 30), Some(1_500_000_000)), &host(Some(3 << 30), Some(2_000_000_000)), 1)
            .unwrap();
        assert!(
            fits_utility_vm(&plain, &host(Some(2 << 30), None), 1).unwrap_err().message.contains("1073741824 bytes")
        );
        assert!(
            fits_utility_vm(&plain, &host(None, Some(1_500_000_000)), 1).unwrap_err().message.contains("1 processors")
        );
    }

    #[test]
    fn what_contradicts_is_a_conflict() {
        for (before, wanted) in [
            (json!({ "CpuPeriod": 5 }), json!({ "NanoCpus": 5 })),
            (json!({ "NanoCpus": 5 }), json!({ "CpuQuota": 5 })),
            (json!({ "Memory": 50 << 20, "MemorySwap": 60 << 20 }), json!({ "Memory": 70 << 20 })),
            (json!({}), json!({ "Memory": 70 << 20 })),
        ] {
            assert_eq!(merge(&before, &wanted).unwrap_err().http_status(), 409, "{wanted}");
        }
        let both = merge(&json!({ "MemorySwap": 6 }), &json!({ "Memory": 7, "MemorySwap": 9 })).unwrap();
        assert_eq!(both["Memory"], 7);
        // Too little for any container, which is found later.
        assert_eq!(merge(&json!({}), &json!({ "Memory": 7 })).unwrap()["Memory"], 7);
    }

    #[test]
    fn a_policy_and_auto_remove_exclude_each_other() {
        let wanted = json!({ "RestartPolicy": { "Name": "always" } });
        assert_eq!(merge(&json!({ "AutoRemove": true }), &wanted).unwrap_err().http_status(), 409);
        assert_eq!(merge(&json!({}), &wanted).unwrap()["RestartPolicy"]["Name"], "always");
    }
}
