//! `GET /version`.

use axum::Json;
use serde_json::{Value, json};

use super::host;
use crate::version::{MAX, MIN};

/// What this engine is. Shape: Docker's, with the Go version empty, since there is none.
pub(super) async fn version() -> Json<Value> {
    let kernel = host::kernel().release;
    let number = env!("CARGO_PKG_VERSION");
    let (api, oldest) = (MAX.to_string(), MIN.to_string());
    let arch = host::go_architecture();
    Json(json!({
        "Platform": {"Name": "Bulkhead"},
        "Components": [{
            "Name": "Engine",
            "Version": number,
            "Details": {
                "ApiVersion": api,
                "Arch": arch,
                "BuildTime": "",
                "Experimental": "false",
                "GitCommit": "",
                "GoVersion": "",
                "KernelVersion": kernel,
                "MinAPIVersion": oldest,
                "Os": "linux",
            },
        }],
        "Version": number,
        "ApiVersion": api,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": kernel,
        "BuildTime": "",
    }))
}
