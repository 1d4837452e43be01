//! `DELETE /networks/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use proto::ErrorKind;

use super::emit;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::network::record::Network;

/// Removes a network.
///
/// # Errors
/// 404; 403 for one that is always there or that a container is on.
pub(super) async fn remove(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let network = engine.networks.store.find(&id)?;
    if network.is_predefined() {
        let text = format!("{} is a pre-defined network and cannot be removed", network.name);
        return Err(ApiError::new(ErrorKind::PermissionDenied, text));
    }
    tokio::task::spawn_blocking(move || discard(&engine, &network)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a network with its bridge and rules. When: in a blocking thread.
///
/// # Errors
/// As [`crate::network::Networks::discard`].
pub(super) fn discard(engine: &Engine, network: &Network) -> ApiResult<()> {
    engine.networks.discard(network)?;
    emit(engine, network, "destroy");
    Ok(())
}
