//! `POST /networks/create`.

mod plan;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use bollard::models::NetworkCreateRequest;
use proto::ErrorKind;
use serde_json::{Value, json};

use super::emit;
use crate::body;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::network::record::{Network, is_predefined};

/// Another network may take the subnet that was free just now.
const TRIES: usize = 8;
/// Networks that one engine keeps.
const MOST: usize = 1024;

/// Makes a network.
///
/// # Errors
/// 400 for what is no network, 403 for a name or subnet that is the engine's own, 404 for a driver that is not there, 409
/// for a name that is taken, 501 for what this version does not do.
pub(super) async fn create(
    State(engine): State<Arc<Engine>>,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let request: NetworkCreateRequest = body::json(request).await?;
    let made = tokio::task::spawn_blocking(move || make(&engine, &request)).await??;
    Ok((StatusCode::CREATED, Json(json!({ "Id": made.id, "Warning": "" }))))
}

fn make(engine: &Engine, request: &NetworkCreateRequest) -> ApiResult<Arc<Network>> {
    check(request)?;
    if engine.networks.store.all().len() >= MOST {
        return Err(ApiError::new(ErrorKind::ResourceExhausted, format!("this engine keeps {MOST} networks at most")));
    }
    let mut tries = TRIES;
    let network = loop {
        let network = plan::network(&engine.networks, request)?;
        let chosen = !network.subnets_given;
        match engine.networks.create(network) {
            Err(error) if error.kind == ErrorKind::PermissionDenied && chosen && tries > 0 => tries -= 1,
            outcome => break outcome?,
        }
    };
    emit(engine, &network, "create");
    Ok(network)
}

/// What can never be, or is not there yet.
fn check(request: &NetworkCreateRequest) -> ApiResult<()> {
    let name = request.name.as_str();
    // As dockerd 28, within bounds: nothing is made of the name but an entry of a table.
    if name.trim().is_empty() {
        return Err(ApiError::invalid("invalid name: name is empty"));
    }
    if name.len() > 255 || name.contains(char::is_control) {
        return Err(ApiError::invalid("invalid name: at most 255 bytes, and no control characters"));
    }
    if is_predefined(name) {
        let text = format!("operation is not permitted on predefined {name} network");
        return Err(ApiError::new(ErrorKind::PermissionDenied, text));
    }
    match request.driver.as_deref().unwrap_or_default() {
        "" | "bridge" | "default" => {}
        driver @ ("host" | "null") => {
            let text = format!("only one instance of \"{driver}\" network is allowed");
            return Err(ApiError::new(ErrorKind::PermissionDenied, text));
        }
        driver @ ("macvlan" | "ipvlan" | "overlay") => return Err(later(&format!("network driver {driver}"))),
        driver => return Err(no_plugin(driver)),
    }
    let ipam = request.ipam.clone().unwrap_or_default();
    if let Some(driver) = ipam.driver.filter(|driver| !matches!(driver.as_str(), "" | "default")) {
        return Err(no_plugin(&driver));
    }
    let from = request.config_from.as_ref().and_then(|from| from.network.as_deref()).unwrap_or_default();
    for (asked, what) in [
        (request.ingress == Some(true), "ingress networks"),
        (request.config_only == Some(true) || !from.is_empty(), "configuration-only networks"),
        (request.enable_ipv4 == Some(false), "networks without IPv4"),
    ] {
        if asked {
            return Err(later(what));
        }
    }
    Ok(())
}

fn later(what: &str) -> ApiError {
    ApiError::not_implemented(format!("{what}: not supported by this version of Bulkhead"))
}

fn no_plugin(driver: &str) -> ApiError {
    ApiError::not_found(format!("plugin \"{driver}\" not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_is_refused_in_dockers_words() {
        for (json, status, text) in [
            (json!({"Name": " "}), 400, "invalid name: name is empty"),
            (json!({"Name": "a\nb"}), 400, "invalid name"),
            (json!({"Name": "bridge"}), 403, "operation is not permitted on predefined bridge network"),
            (json!({"Name": "x", "Driver": "nosuch"}), 404, "plugin \"nosuch\" not found"),
            (json!({"Name": "x", "Driver": "host"}), 403, "only one instance of \"host\" network is allowed"),
            (json!({"Name": "x", "Driver": "macvlan"}), 501, "macvlan"),
            (json!({"Name": "x", "IPAM": {"Driver": "nosuch"}}), 404, "plugin \"nosuch\" not found"),
        ] {
            let error = check(&serde_json::from_value(json).unwrap()).unwrap_err();
            assert_eq!(error.http_status(), status);
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
