//! `GET /networks` and `GET /networks/{id}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::Value;

use super::view;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::filters::Filters;
use crate::network::record::Network;
use crate::query::Query;

/// The filters that are known. Source: moby `daemon/network/filter.go`.
const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

/// Lists networks.
///
/// # Errors
/// 400 for a filter that is not known.
pub(super) async fn list(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let filters = query.filters()?;
    filters.only(FILTERS)?;
    let dangling = filters.truth("dangling")?;
    if let Some(word) = filters.values("type").find(|word| !matches!(*word, "builtin" | "custom")) {
        return Err(ApiError::invalid(format!("invalid filter: 'type'='{word}'")));
    }
    let all = engine.networks.store.all();
    let chosen = all.iter().filter(|network| fits(&filters, network)).filter(|network| {
        let unused = || !network.is_predefined() && engine.networks.store.members(&network.id).is_empty();
        dangling.is_none_or(|wanted| wanted == unused())
    });
    // Who is on them only an inspection shows.
    Ok(Json(chosen.map(|network| view::network(network, BTreeMap::new().iter())).collect()))
}

fn fits(filters: &Filters, network: &Network) -> bool {
    let kind = if network.is_predefined() { "builtin" } else { "custom" };
    filters.fits_exactly("driver", network.driver.as_str())
        && filters.fits("id", |id| network.id.contains(id))
        && filters.fits("name", |name| network.name.contains(name))
        && filters.fits_exactly("scope", "local")
        && filters.fits_exactly("type", kind)
        && filters.fits_labels("label", |label| network.labels.get(label).map(String::as_str))
}

/// Shows a network and who is on it.
///
/// # Errors
/// 404.
pub(super) async fn inspect(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Json<Value>> {
    let network = engine.networks.store.find(&id)?;
    if query.get("scope").is_some_and(|scope| scope != "local") {
        return Err(ApiError::not_found(format!("network {id} not found")));
    }
    let members = engine.networks.store.members(&network.id);
    Ok(Json(view::network(&network, members.iter())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::record::Driver;

    #[test]
    fn filters_choose() {
        let mut network = Network::new("ab".repeat(32), "shop_default", Driver::Bridge);
        network.labels.insert("a".into(), "b".into());
        for (filters, expected) in [
            (r#"{"name":["shop"]}"#, true),
            (r#"{"name":["x"]}"#, false),
            (r#"{"driver":["bridge"],"type":["custom"]}"#, true),
            (r#"{"type":["builtin"]}"#, false),
            (r#"{"label":["a=b"]}"#, true),
            (r#"{"label":["a=c"]}"#, false),
            (r#"{"scope":["swarm"]}"#, false),
        ] {
            assert_eq!(fits(&Filters::parse(filters).unwrap(), &network), expected, "{filters}");
        }
    }
}
