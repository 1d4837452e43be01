//! `POST /containers/{id}/update`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use bollard::models::HostConfig;
use proto::ErrorKind;
use serde_json::{Value, json};

use super::bundle;
use crate::body;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};

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
    let after = merge(&before, &wanted)?;
    body::typed::<HostConfig, _>(&after)?;
    container.record().host = after;
    if let Err(error) = apply(&engine, &container).await {
        container.record().host = before;
        // What the client asked for wrongly is told as it is.
        let is_wrong = error.kind == ErrorKind::InvalidArgument;
        return Err(if is_wrong { error } else { error.context(format!("Cannot update container {}", container.id)) });
    }
    container.save().await?;
    container.emit(&engine.events, "update", &[]);
    Ok(Json(json!({ "Warnings": [] })))
}

/// Zero and nothing leave a limit as it is.
fn merge(before: &Value, wanted: &Value) -> ApiResult<Value> {
    let Some(wanted) = wanted.as_object() else { return Err(ApiError::invalid("invalid JSON: an object is expected")) };
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
        let before = json!({ "Memory": 1, "CpuShares": 2, "AutoRemove": false, "Privileged": false });
        let wanted = json!({ "Memory": 5, "CpuShares": 0, "CpusetCpus": "", "Privileged": true, "RestartPolicy": { "Name": "" } });
        let after = merge(&before, &wanted).unwrap();
        assert_eq!(after, json!({ "Memory": 5, "CpuShares": 2, "AutoRemove": false, "Privileged": false }));
    }

    #[test]
    fn a_policy_and_auto_remove_exclude_each_other() {
        let wanted = json!({ "RestartPolicy": { "Name": "always" } });
        assert_eq!(merge(&json!({ "AutoRemove": true }), &wanted).unwrap_err().http_status(), 409);
        assert_eq!(merge(&json!({}), &wanted).unwrap()["RestartPolicy"]["Name"], "always");
    }
}
