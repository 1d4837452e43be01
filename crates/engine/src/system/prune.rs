//! Pruning of what this engine has none of yet: there is nothing to remove, and `docker system prune` asks for all kinds.

use axum::Json;
use serde_json::{Value, json};

/// `POST /build/prune`.
pub(super) async fn build_cache() -> Json<Value> {
    Json(json!({ "CachesDeleted": null, "SpaceReclaimed": 0 }))
}
