//! What clients do with networks: every endpoint below `/networks`. How networks are made is in [`crate::network`].

mod connect;
mod create;
mod list;
mod prune;
mod remove;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::engine::Engine;
use crate::network::record::Network;

/// The routes of this module.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/networks", get(list::list))
        .route("/networks/create", post(create::create))
        .route("/networks/prune", post(prune::prune))
        .route("/networks/{id}", get(list::inspect).delete(remove::remove))
        .route("/networks/{id}/connect", post(connect::connect))
        .route("/networks/{id}/disconnect", post(connect::disconnect))
}

/// Tells everybody that something happened to a network.
fn emit(engine: &Engine, network: &Network, action: &'static str) {
    let attributes = [("name", network.name.clone()), ("type", network.driver.as_str().to_owned())];
    let attributes: BTreeMap<String, String> = attributes.map(|(name, value)| (name.to_owned(), value)).into();
    engine.events.publish("network", action, &network.id, attributes);
}
