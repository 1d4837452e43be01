//! `POST /bulkhead/system/check`: verifies everything that is stored. Parameter: `repair`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use image::registry::PullOptions;
use image::{CheckReport, Finding, Reference, Remedy};
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
    let checking = Arc::clone(&engine);
    let checked = tokio::task::spawn_blocking(move || checking.images.check(repair)).await?;
    let report = checked.map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
    let fetched = if repair { fetch_again(&engine, &report.findings).await } else { Fetched::new() };
    Ok(Json(describe(&engine, &report, &fetched)))
}

/// What became of fetching images again, by name: nothing, or why it failed.
type Fetched = BTreeMap<String, Option<String>>;

/// Pulls the images of damaged layers that came from a registry, as nobody in particular: the check has no credentials. Only
/// what is damaged is fetched.
async fn fetch_again(engine: &Engine, findings: &[Finding]) -> Fetched {
    let mut fetched = Fetched::new();
    for finding in findings {
        let Remedy::Pull(name) = &finding.remedy else { continue };
        if fetched.contains_key(name) {
            continue;
        }
        let outcome = match name.parse::<Reference>() {
            Ok(reference) => engine
                .registries
                .pull(&reference, &PullOptions::default(), &|_| {})
                .await
                .map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        fetched.insert(name.clone(), outcome.err());
    }
    fetched
}

fn describe(engine: &Engine, report: &CheckReport, fetched: &Fetched) -> Value {
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
    let findings: Vec<Value> = report.findings.iter().map(|found| finding(found, fetched)).chain(orphans).collect();
    json!({
        "Layers": report.layers,
        "LayerBytes": report.layer_bytes,
        "Images": report.images,
        "Containers": containers.len(),
        "Findings": findings,
    })
}

fn finding(finding: &Finding, fetched: &Fetched) -> Value {
    let names = finding.images.join(", ");
    let remedy = match (&finding.remedy, finding.repaired) {
        (Remedy::Remove, true) => "removed".to_owned(),
        (Remedy::Remove, false) => "system check --repair removes it".to_owned(),
        (Remedy::Pull(name), true) => match fetched.get(name) {
            Some(None) => format!("fetched again from {name}"),
            Some(Some(fault)) => format!("pull {name}: fetching it again failed: {fault}"),
            None => format!("pull {name}: it is fetched again"),
        },
        (Remedy::Pull(name), false) => format!("system check --repair fetches it again from {name}"),
        (Remedy::Load, true) => format!("load {names} again"),
        (Remedy::Load, false) if finding.kind == "layer" => format!("system check --repair, then load {names} again"),
        (Remedy::Load, false) => format!("remove {names} and load it again"),
    };
    let repaired = match &finding.remedy {
        Remedy::Remove => finding.repaired,
        Remedy::Pull(name) => finding.repaired && fetched.get(name) == Some(&None),
        Remedy::Load => false,
    };
    json!({
        "Kind": finding.kind,
        "Subject": finding.subject,
        "Fault": finding.fault,
        "Images": finding.images,
        "Remedy": remedy,
        "Repaired": repaired,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_names_what_to_do() {
        let name = "a@sha256:1";
        let told = |kind, remedy, repaired, outcome: Option<Option<&str>>| {
            let images = vec!["app:1".to_owned()];
            let fetched = outcome.map(|fault| (name.to_owned(), fault.map(str::to_owned))).into_iter().collect();
            let found = Finding { kind, subject: "x".into(), fault: "y".into(), images, remedy, repaired };
            let told = finding(&found, &fetched);
            (told["Remedy"].as_str().unwrap().to_owned(), told["Repaired"] == true)
        };
        let pull = || Remedy::Pull(name.into());
        assert_eq!(told("layer", Remedy::Load, true, None), ("load app:1 again".into(), false));
        assert_eq!(told("layer", pull(), true, Some(None)), (format!("fetched again from {name}"), true));
        let failed = told("layer", pull(), true, Some(Some("no route")));
        assert_eq!(failed, (format!("pull {name}: fetching it again failed: no route"), false));
        assert!(!told("layer", pull(), false, None).1);
        assert!(told("file", Remedy::Remove, true, None).1);
    }
}
