//! `POST /bulkhead/system/check`: verifies everything that is stored. Parameter: `repair`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use image::{CheckReport, Finding, Remedy};
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;

/// Answers when all was read: `Layers`, `LayerBytes`, `Images`, `Containers` count what was looked at, `Findings` has
/// `Kind`, `Subject`, `Fault`, `Images`, `Remedy` and `Repaired` of each fault.
///
/// # Errors
/// 500 when the store itself cannot be read or changed.
pub(super) async fn check(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let repair = query.flag("repair");
    let checked = tokio::task::spawn_blocking(move || {
        let report = engine.images.check(repair).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        Ok::<_, ApiError>(describe(&engine, &report))
    });
    Ok(Json(checked.await??))
}

fn describe(engine: &Engine, report: &CheckReport) -> Value {
    let containers = engine.containers.all();
    let orphans = containers.iter().filter(|container| engine.images.image(&container.record().image_id).is_none());
    let orphans = orphans.map(|container| {
        let record = container.record();
        json!({
            "Kind": "container",
            "Subject": record.id,
            "Fault": format!("its image {} is not there", record.image_id),
            "Images": [record.image],
            "Remedy": format!("load {} again, or remove the container", record.image),
            "Repaired": false,
        })
    });
    let findings: Vec<Value> = report.findings.iter().map(finding).chain(orphans).collect();
    json!({
        "Layers": report.layers,
        "LayerBytes": report.layer_bytes,
        "Images": report.images,
        "Containers": containers.len(),
        "Findings": findings,
    })
}

fn finding(finding: &Finding) -> Value {
    let names = finding.images.join(", ");
    let remedy = match (&finding.remedy, finding.repaired) {
        (Remedy::Remove, true) => "removed".to_owned(),
        (Remedy::Remove, false) => "system check --repair removes it".to_owned(),
        (Remedy::Pull(name), true) => format!("pull {name}: it is fetched again"),
        (Remedy::Pull(name), false) => format!("system check --repair, then pull {name}"),
        (Remedy::Load, true) => format!("load {names} again"),
        (Remedy::Load, false) if finding.kind == "layer" => format!("system check --repair, then load {names} again"),
        (Remedy::Load, false) => format!("remove {names} and load it again"),
    };
    json!({
        "Kind": finding.kind,
        "Subject": finding.subject,
        "Fault": finding.fault,
        "Images": finding.images,
        "Remedy": remedy,
        "Repaired": finding.repaired && finding.remedy == Remedy::Remove,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_names_what_to_do() {
        let told = |kind, remedy, repaired| {
            let images = vec!["app:1".to_owned()];
            finding(&Finding { kind, subject: "x".into(), fault: "y".into(), images, remedy, repaired })
        };
        assert_eq!(told("layer", Remedy::Load, true)["Remedy"], "load app:1 again");
        let pulled = told("layer", Remedy::Pull("a@sha256:1".into()), true);
        assert_eq!(
            (pulled["Remedy"].as_str(), &pulled["Repaired"]),
            (Some("pull a@sha256:1: it is fetched again"), &json!(false))
        );
        assert_eq!(told("file", Remedy::Remove, true)["Repaired"], true);
    }
}
