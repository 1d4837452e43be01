//! Listing, making, looking at and removing volumes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{discard, emit, users};
use crate::body;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::filters::Filters;
use crate::query::Query;
use crate::volume::{Volume, Wanted};

/// `POST /volumes/create`. One that is there already is answered as it is.
///
/// # Errors
/// 400 for a wrong name or option, 404 for a driver that is not there.
pub async fn create(State(engine): State<Arc<Engine>>, request: Request) -> ApiResult<(StatusCode, Json<Value>)> {
    let wanted: Wanted = body::json(request).await?;
    let made = tokio::task::spawn_blocking(move || {
        let (lease, new) = engine.volumes.create(wanted)?;
        if new {
            emit(&engine, "create", &lease.0.name, &[]);
        }
        Ok::<_, ApiError>(lease.0.view())
    });
    Ok((StatusCode::CREATED, Json(made.await??)))
}

/// `GET /volumes/{name}`.
///
/// # Errors
/// 404.
pub async fn inspect(State(engine): State<Arc<Engine>>, Path(name): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(engine.volumes.find(&name)?.view()))
}

/// `GET /volumes`.
///
/// # Errors
/// 400 for a filter that is not known.
pub async fn list(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let filters = query.filters()?;
    filters.only(&["dangling", "name", "driver", "label"])?;
    let dangling = filters.truth("dangling")?;
    let all = engine.volumes.all();
    let fit = |volume: &&Arc<Volume>| {
        fits(volume, &filters) && dangling.is_none_or(|wanted| users(&engine, &volume.name).is_empty() == wanted)
    };
    let views: Vec<Value> = all.iter().filter(fit).map(|volume| volume.view()).collect();
    Ok(Json(json!({ "Volumes": views, "Warnings": null })))
}

fn fits(volume: &Volume, filters: &Filters) -> bool {
    filters.fits("name", |part| volume.name.contains(part))
        && filters.fits("driver", |driver| driver == "local")
        && filters.fits_labels("label", |name| volume.label(name))
}

/// `DELETE /volumes/{name}`.
///
/// # Errors
/// 404 unless forced; 409 when a container uses it.
pub async fn remove(
    State(engine): State<Arc<Engine>>,
    Path(name): Path<String>,
    query: Query,
) -> ApiResult<StatusCode> {
    let force = query.flag("force");
    let removed = tokio::task::spawn_blocking(move || discard(&engine, &name)).await?;
    match removed {
        Err(error) if force && error.kind == proto::ErrorKind::NotFound => {}
        other => other?,
    }
    Ok(StatusCode::NO_CONTENT)
}
