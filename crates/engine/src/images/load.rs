//! `POST /images/load`: images from an archive of `docker save` or an OCI layout.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use image::LoadEvent;
use proto::Digest;
use serde_json::{Value, json};

use super::{progress, publish};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;
use crate::reader;

/// At least this much time lies between two lines about the same thing.
const INTERVAL: Duration = Duration::from_millis(100);

pub(super) async fn load(engine: Arc<Engine>, query: &Query, body: Body) -> ApiResult<Response> {
    let quiet = query.flag("quiet");
    let archive = reader::of_body(body);
    Ok(progress::answer_in_lines(move |lines| {
        let mut last = Instant::now();
        let mut tell = |event: LoadEvent| {
            if let LoadEvent::NameMoved { name, from } = &event {
                lines.send(json!({"stream": format!(
                    "The image {name} already exists, renaming the old one with ID {from} to empty string\n"
                )}));
            } else if !quiet && (is_step(&event) || last.elapsed() >= INTERVAL) {
                last = Instant::now();
                lines.offer(line(&event));
            }
        };
        let loaded =
            engine.images.load(archive, &mut tell).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        for image in loaded {
            publish(&engine, "load", image.id.as_str(), image.id.as_str());
            for name in &image.names {
                lines.send(json!({"stream": format!("Loaded image: {name}\n")}));
            }
            if image.names.is_empty() {
                lines.send(json!({"stream": format!("Loaded image ID: {}\n", image.id)}));
            }
        }
        Ok(())
    })
    .await)
}

/// One of few lines, none of which may be missing.
fn is_step(event: &LoadEvent) -> bool {
    matches!(event, LoadEvent::LayerExists { .. } | LoadEvent::LayerDone { .. })
}

/// The line in Docker's form: what is done to which layer, and how far it is.
fn line(event: &LoadEvent) -> Value {
    let short = |id: &Digest| id.hex()[..12].to_owned();
    match event {
        LoadEvent::Received { bytes } => {
            json!({"status": "Receiving archive", "id": "archive", "progressDetail": {"current": bytes}})
        }
        LoadEvent::LayerExists { diff_id } => {
            json!({"status": "Layer already exists", "id": short(diff_id), "progressDetail": {}})
        }
        LoadEvent::LayerProgress { diff_id, bytes, total_bytes } => json!({
            "status": "Loading layer",
            "id": short(diff_id),
            "progressDetail": {"current": bytes, "total": total_bytes},
        }),
        LoadEvent::LayerDone { diff_id } => {
            json!({"status": "Layer loaded", "id": short(diff_id), "progressDetail": {}})
        }
        LoadEvent::NameMoved { name, .. } => json!({"status": "Name moved", "id": name, "progressDetail": {}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_told_by_its_first_digits() {
        let diff_id: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let told = line(&LoadEvent::LayerProgress { diff_id, bytes: 5, total_bytes: 9 });
        assert_eq!(told["id"], "abababababab");
        assert_eq!(told["progressDetail"], json!({"current": 5, "total": 9}));
        assert!(!is_step(&LoadEvent::Received { bytes: 1 }));
    }
}
