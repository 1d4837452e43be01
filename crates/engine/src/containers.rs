//! What clients do with containers: every endpoint below `/containers` and `/exec`, and what happens between them.
//!
//! The way of a run: [`create`] makes folder and record; [`start`] calls [`launch`], which makes the [`bundle`], starts the
//! [`shim`] (or takes the one that the engine has on [`standby`]) and the task; [`supervise`] watches until the end, and then restarts ([`restart_policy`]) or removes ([`remove`]).

mod archive;
mod attach;
mod attach_ws;
mod bundle;
mod changes;
mod commit;
mod config;
mod create;
mod exec;
mod exec_start;
mod export;
mod files;
mod files_mounts;
mod health;
mod host_end;
mod inspect;
mod intermediate;
mod kill;
mod lack;
mod launch;
mod links;
mod list;
mod logs;
mod mounting;
mod names;
mod network_view;
mod networking;
mod pause;
mod prune;
mod remove;
mod rename;
mod resize;
mod restart_policy;
mod shim;
mod size;
mod standby;
mod start;
mod stats;
mod stop;
pub mod supervise;
mod top;
mod update;
mod usage;
mod view;
mod wait;

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};

use crate::engine::Engine;

pub use create::{check_platform, random_id};
pub use files::clear_leftovers;
pub use host_end::stop_all;
pub use intermediate::Intermediate;
pub use kill::parse_signal;
pub use launch::Run;
pub use list::with_sizes;
pub use mounting::{plain_binds, unknown_mount_type};
pub use networking::{adopt as adopt_networks, mend_for_good as mend_networks};
pub use remove::{collect_image, discard_with_volumes, uses_of};
pub use restart_policy::apply_at_start;
pub use shim::{bury, delete_leftovers};
pub use standby::{clear_standby, keep_standby};

/// The routes of this module.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/containers/json", get(list::list))
        .route("/containers/create", post(create::create))
        .route("/containers/prune", post(prune::prune))
        .route("/containers/{id}", delete(remove::remove))
        .route("/containers/{id}/{alias}", delete(remove::remove_link))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/start", post(start::start))
        .route("/containers/{id}/stop", post(stop::stop))
        .route("/containers/{id}/restart", post(stop::restart))
        .route("/containers/{id}/kill", post(kill::kill))
        .route("/containers/{id}/pause", post(pause::pause))
        .route("/containers/{id}/unpause", post(pause::unpause))
        .route("/containers/{id}/rename", post(rename::rename))
        .route("/containers/{id}/update", post(update::update))
        .route("/containers/{id}/resize", post(resize::container))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/attach/ws", get(attach_ws::attach))
        .route("/containers/{id}/wait", post(wait::wait))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/top", get(top::top))
        .route("/containers/{id}/archive", get(archive::read).head(archive::stat).put(archive::write))
        .route("/containers/{id}/changes", get(changes::changes))
        .route("/containers/{id}/export", get(export::export))
        .route("/commit", post(commit::commit))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec_start::start))
        .route("/exec/{id}/resize", post(resize::exec))
        .route("/exec/{id}/json", get(exec::inspect))
}
