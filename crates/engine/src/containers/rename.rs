//! `POST /containers/{id}/rename`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::names;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::query::Query;

/// Gives a container another name.
///
/// # Errors
/// 404; 400 for a name that is none; 409 for one that is taken.
pub async fn rename(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.containers.find(&id)?;
    let Some(name) = query.get("name") else {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    };
    let name = name.strip_prefix('/').unwrap_or(name);
    if !names::is_valid(name) {
        return Err(names::invalid(name));
    }
    let _lifecycle = container.hold().await?;
    let old = container.name();
    if old == name {
        return Err(ApiError::invalid("Renaming a container with the same name as its current name"));
    }
    engine.containers.rename(&container, name).map_err(|error| error.context("Error when allocating new name"))?;
    container.record().network.rename(&old, name);
    if let Err(error) = container.save().await {
        engine.containers.rename(&container, &old)?;
        container.record().network.rename(name, &old);
        return Err(error);
    }
    engine.networks.store.rename(container.id.as_str(), &old, name);
    container.emit(&engine.events, "rename", &[("oldName", format!("/{old}"))]);
    Ok(StatusCode::NO_CONTENT)
}
