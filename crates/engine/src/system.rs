//! What the engine says about itself and its host: `/version`, `/info`, `/system/df`, and our own `/bulkhead/...`.

mod check;
mod disk;
mod host;
mod info;
mod probe;
mod prune;
mod shim;
mod templates;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};

use crate::engine::Engine;
use crate::error::ApiResult;
use probe::Probe;

/// The routes. What a probe of the host found is kept beside them.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/version", get(version::version))
        .route("/info", get(info::info))
        .route("/system/df", get(disk::usage))
        .route("/build/prune", post(prune::build_cache))
        .route("/bulkhead/system/check", post(check::check))
        .route("/bulkhead/probe", get(probe_again))
        .route("/bulkhead/templates", get(templates::list).post(templates::create))
        .route("/bulkhead/templates/prune", post(templates::prune))
        .route("/bulkhead/templates/{id}", delete(templates::remove))
        .layer(Extension(Arc::new(Probe::default())))
}

/// `GET /bulkhead/probe`: looks at the host anew.
async fn probe_again(
    State(engine): State<Arc<Engine>>,
    Extension(probe): Extension<Arc<Probe>>,
) -> ApiResult<Response> {
    Ok(axum::Json(probe.run(&engine).await?).into_response())
}
