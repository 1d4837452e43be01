//! `POST /build`: images from Dockerfiles, as dockerd's classic builder makes them.
//!
//! The way of a build: [`options`] reads the request, [`context`] takes the files in ([`remote`] and [`git`] fetch them where
//! the client does not send them), [`dockerfile`] reads the Dockerfile;
//! [`builder`] goes through its stages. Each instruction changes the [`state`], and is carried out by [`metadata`], [`run`]
//! or [`copy`], unless [`cache`] knows an image that came of it already. RUN and COPY work in containers behind the
//! build's wall ([`crate::containers::Intermediate`]). [`output`] is what the client sees.
//!
//! Source: moby 20.10, builder/dockerfile; docs/design/0013-build.md.

mod args;
mod builder;
mod cache;
mod context;
mod copy;
mod dockerfile;
mod git;
mod metadata;
mod options;
mod output;
mod remote;
mod run;
mod source;
mod state;
mod submodules;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::peer::Peer;
use crate::query::Query;
use crate::{images, reader};
use options::Options;

/// The routes of this module.
pub fn router() -> Router<Arc<Engine>> {
    Router::new().route("/build", post(build)).route("/build/cancel", post(cancel))
}

/// A build among those that can be cancelled, until it is dropped.
struct Entered {
    engine: Arc<Engine>,
    id: String,
}

impl Entered {
    fn enter(engine: &Arc<Engine>, id: &str, cancelled: &CancellationToken) -> Option<Self> {
        if id.is_empty() {
            return None;
        }
        engine.builds.enter(id, cancelled);
        Some(Self { engine: Arc::clone(engine), id: id.to_owned() })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.engine.builds.leave(&self.id);
    }
}

async fn build(State(engine): State<Arc<Engine>>, query: Query, request: Request) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    // Before anything is refused: an answer that comes while the client still sends is lost on it.
    let body = reader::of_body(body);
    let options = Options::read(&query, engine.settings.default_isolation)?;
    let logins = images::logins(&parts.headers)?;
    let cancelled = engine.stopping.child_token();
    let entered = Entered::enter(&engine, &options.build_id, &cancelled);
    let watch = parts.extensions.get::<Peer>().map(|peer| peer.watch(cancelled.clone()));
    let quiet = options.quiet;
    output::answer(quiet, cancelled.clone(), move |output| async move {
        let _kept = (entered, watch);
        builder::run(engine, options, logins, body, output, cancelled).await
    })
    .await
}

async fn cancel(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Response> {
    let id = query.get("id").ok_or_else(|| ApiError::invalid("build ID not provided"))?;
    engine.builds.cancel(id);
    Ok(StatusCode::OK.into_response())
}

/// The folder that spools lie in.
fn folder(engine: &Engine) -> ApiResult<std::path::PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = engine.settings.data_root.join(crate::builds::FOLDER);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(|error| ApiError::caused("cannot make the folder of builds", &error))?;
    Ok(folder)
}
