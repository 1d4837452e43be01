//! `POST /networks/{id}/connect` and `/disconnect`.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use bollard::models::EndpointSettings;
use proto::{ErrorKind, Isolation};
use serde::Deserialize;

use crate::body;
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::network::AttachRequest;
use crate::network::endpoint::Endpoint;
use crate::network::record::Network;

/// Networks that one container may be on.
const MOST: usize = 64;

/// Body of both requests.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Body {
    #[serde(default)]
    container: String,
    #[serde(default)]
    endpoint_config: Option<EndpointSettings>,
    /// An endpoint may be meant whose container is gone.
    #[serde(default)]
    force: bool,
}

/// Connects a container with a network, at once if it runs.
///
/// # Errors
/// 404; 400 for networks that cannot be combined; 403 when it is on the network already.
pub(super) async fn connect(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<StatusCode> {
    let body: Body = body::json(request).await?;
    let container = engine.containers.find(&body.container)?;
    let network = engine.networks.connectable(&id)?;
    check_mode(&container)?;
    let asked = body.endpoint_config.unwrap_or_default();
    crate::network::rates(container.isolation, &asked)?;
    tokio::spawn(async move { change(&engine, &container, &network, Change::Connect(Box::new(asked))).await })
        .await??;
    Ok(StatusCode::OK)
}

/// Takes a container off a network, at once if it runs.
///
/// # Errors
/// 404; 400 for networks that cannot be left; 500, as dockerd, when it is not on the network.
pub(super) async fn disconnect(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<StatusCode> {
    let body: Body = body::json(request).await?;
    let container = match engine.containers.find(&body.container) {
        // An endpoint that a container has left behind could be meant; here none is ever left.
        Err(error) if error.kind == ErrorKind::NotFound && body.force => {
            return Err(ApiError::not_found(format!("endpoint {} not found", body.container)));
        }
        found => found?,
    };
    let network = engine.networks.connectable(&id)?;
    tokio::spawn(async move { change(&engine, &container, &network, Change::Disconnect).await }).await??;
    Ok(StatusCode::OK)
}

/// Source: moby `runconfig/errors.go`.
fn check_mode(container: &Container) -> ApiResult<()> {
    let record = container.record();
    match record.host_text("NetworkMode") {
        "host" => {
            Err(ApiError::invalid("container cannot be disconnected from host network or connected to host network"))
        }
        "none" => Err(ApiError::invalid(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        )),
        mode if mode.starts_with("container:") => Err(ApiError::invalid(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        )),
        _ if record.network.all.len() >= MOST => {
            Err(ApiError::invalid(format!("a container may be on {MOST} networks at most")))
        }
        _ => Ok(()),
    }
}

enum Change {
    Connect(Box<EndpointSettings>),
    Disconnect,
}

async fn change(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    network: &Arc<Network>,
    change: Change,
) -> ApiResult<()> {
    let _lifecycle = container.lifecycle.lock().await;
    let (runs, is_on, paused) = {
        let record = container.record();
        let paused = matches!(record.phase, Phase::Running { paused: true, .. });
        (record.phase.is_running(), record.network.all.contains_key(&network.name), paused)
    };
    let is_guest = runs && container.isolation == Isolation::Hyperv;
    if is_guest && paused {
        return Err(ApiError::conflict(format!("container {} is paused: unpause it first", container.id)));
    }
    let action = match (&change, is_on) {
        (Change::Connect(_), true) if runs => {
            let text = format!("endpoint with name {} already exists in network {}", container.name(), network.name);
            return Err(ApiError::new(ErrorKind::PermissionDenied, text));
        }
        (Change::Disconnect, false) => {
            // dockerd has one sentence for a container that runs and another for one that does not.
            let the = if runs { "" } else { "the " };
            return Err(ApiError::internal(format!(
                "container {} is not connected to {the}network {}",
                container.id, network.name
            )));
        }
        (Change::Connect(_), _) => "connect",
        (Change::Disconnect, true) => "disconnect",
    };
    let connects = matches!(change, Change::Connect(_));
    let mut changed = carry_out(engine, container, network, change, runs).await;
    if is_guest && changed.is_ok() {
        changed = tell_guest(engine, container).await;
        if changed.is_err() && connects {
            carry_out(engine, container, network, Change::Disconnect, true).await?;
        }
    }
    container.save().await?;
    changed?;
    if runs {
        container.emit_network(&engine.events, action, network);
    }
    Ok(())
}

async fn carry_out(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    network: &Arc<Network>,
    change: Change,
    runs: bool,
) -> ApiResult<()> {
    let (engine, container, network) = (Arc::clone(engine), Arc::clone(container), Arc::clone(network));
    let work = move || {
        if runs { change_live(&engine, &container, &network, change) } else { note(&container, &network, change) }
    };
    tokio::task::spawn_blocking(work).await?
}

/// A utility VM has to be told what its network is by now.
async fn tell_guest(engine: &Engine, container: &Container) -> ApiResult<()> {
    let task = container.running()?.task.clone();
    let (config, host, name) = (container.config()?, container.host()?, container.name());
    let (dir, isolation) = (container.dir.as_path(), container.isolation);
    let request =
        AttachRequest { id: container.id.as_str(), name: &name, config: &config, host: &host, dir, isolation };
    let endpoints = container.record().network.clone();
    let update = engine.networks.guest_update(&request, &endpoints)?;
    Ok(task.update_network(&update).await?)
}

fn change_live(engine: &Engine, container: &Container, network: &Network, change: Change) -> ApiResult<()> {
    let (config, host, name) = (container.config()?, container.host()?, container.name());
    let (dir, isolation) = (container.dir.as_path(), container.isolation);
    let request =
        AttachRequest { id: container.id.as_str(), name: &name, config: &config, host: &host, dir, isolation };
    let mut endpoints = container.record().network.clone();
    let changed = match change {
        Change::Connect(asked) => engine.networks.connect(&request, &mut endpoints, network, *asked),
        Change::Disconnect => engine.networks.disconnect(&request, &mut endpoints, network),
    };
    container.record().network = endpoints;
    changed
}

fn note(container: &Container, network: &Network, change: Change) -> ApiResult<()> {
    match change {
        Change::Connect(asked) => {
            let endpoint = Endpoint { network_id: network.id.clone(), asked: *asked, live: None };
            container.record().network.all.insert(network.name.clone(), endpoint);
        }
        Change::Disconnect => {
            container.record().network.all.remove(&network.name);
        }
    }
    Ok(())
}
