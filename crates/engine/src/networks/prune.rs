//! `POST /networks/prune`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::remove;
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::filters::Filters;
use crate::query::Query;

/// Removes the networks that no container is on.
///
/// # Errors
/// 400 for a filter that is not known.
pub(super) async fn prune(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let filters = query.filters()?;
    filters.only(&["until", "label", "label!"])?;
    let pruned = tokio::task::spawn_blocking(move || prune_unused(&engine, &filters)).await??;
    Ok(Json(json!({ "NetworksDeleted": if pruned.is_empty() { Value::Null } else { json!(pruned) } })))
}

fn prune_unused(engine: &Engine, filters: &Filters) -> ApiResult<Vec<String>> {
    let until = filters.until()?;
    let mut pruned = Vec::new();
    for network in engine.networks.store.all() {
        let label = |name: &str| network.labels.get(name).map(String::as_str);
        let chosen = !network.is_predefined()
            && until.is_none_or(|until| network.created < until)
            && filters.fits_labels("label", label)
            && filters.lacks_labels(label);
        if !chosen || !engine.networks.store.members(&network.id).is_empty() {
            continue;
        }
        match remove::discard(engine, &network) {
            Ok(()) => pruned.push(network.name.clone()),
            Err(error) => tracing::warn!(network = network.name, "cannot prune a network: {error}"),
        }
    }
    let attributes = BTreeMap::from([("reclaimed".to_owned(), "0".to_owned())]);
    engine.events.publish("network", "prune", "", attributes);
    Ok(pruned)
}
