//! One image in full: `GET /images/{name}/json` and `/history`.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use image::{Image, ImageStore};
use serde_json::{Value, json};

use super::{blocking, resolve};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::version::ApiVersion;

/// Go's zero time, which clients read as "never".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// From this version on the configuration has the fields only that an image can have, and of those the ones that say something.
const IMAGE_CONFIG_SINCE: ApiVersion = ApiVersion::new(1, 50);
/// Source: docker-image-spec v1.3, `DockerOCIImageConfig`.
const IMAGE_FIELDS: [&str; 14] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "ArgsEscaped",
    "Memory",
    "Healthcheck",
    "OnBuild",
    "Shell",
];

pub(super) async fn inspect(engine: Arc<Engine>, name: &str, version: ApiVersion) -> ApiResult<Response> {
    let name = name.to_owned();
    let described = blocking(&engine, move |store| describe(store, &resolve(store, &name)?, version)).await?;
    Ok(Json(described).into_response())
}

pub(super) async fn history(engine: Arc<Engine>, name: &str) -> ApiResult<Response> {
    let name = name.to_owned();
    let entries = blocking(&engine, move |store| Ok(store.history(&resolve(store, &name)?))).await?;
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            json!({
                "Id": entry.id.map_or_else(|| "<missing>".to_owned(), |id| id.to_string()),
                "Created": entry.created_unix,
                "CreatedBy": entry.created_by,
                "Tags": if entry.tags.is_empty() { Value::Null } else { json!(entry.tags) },
                "Size": entry.size_bytes,
                "Comment": entry.comment,
            })
        })
        .collect();
    Ok(Json(entries).into_response())
}

fn describe(store: &ImageStore, image: &Image, version: ApiVersion) -> ApiResult<Value> {
    // Docker's additions to the configuration (health check, shell) are kept as they are.
    let whole: Value = serde_json::from_slice(&image.config_json)
        .map_err(|error| ApiError::caused("cannot read the image's configuration", &error))?;
    let text = |name: &str| whole[name].as_str().unwrap_or_default().to_owned();
    let last_step = whole["history"].as_array().and_then(|steps| steps.last());
    let comment = last_step.and_then(|step| step["comment"].as_str()).unwrap_or_default();
    let files = store.layer_files(image).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
    let files: Vec<String> = files.iter().map(|layer| layer.path.display().to_string()).collect();
    let mut described = json!({
        "Id": image.id.as_str(),
        "RepoTags": store.find_tags(&image.id),
        "RepoDigests": store.find_digests(&image.id),
        "Parent": store.parent(&image.id).as_ref().map_or("", proto::Digest::as_str),
        "Comment": comment,
        "Created": image.created.as_deref().unwrap_or(NEVER),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Config": if version < IMAGE_CONFIG_SINCE { config(&whole["config"]) } else { image_config(&whole["config"]) },
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "GraphDriver": {"Name": "erofs", "Data": {"Layers": files.join(":")}},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids.iter().map(proto::Digest::as_str).collect::<Vec<_>>()},
        "Metadata": {"LastTagTime": NEVER},
    });
    if let Some(variant) = whole["variant"].as_str() {
        described["Variant"] = json!(variant);
    }
    // dockerd leaves both out from version 1.45 on; Compose 1, which takes the newest version, has failed with it since.
    described["Container"] = json!(text("container"));
    let made_by = &whole["container_config"];
    described["ContainerConfig"] = config(if made_by.is_object() { made_by } else { &whole["config"] });
    Ok(described)
}

/// The image's run configuration as newer clients read it.
fn image_config(run: &Value) -> Value {
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Number(_) => true,
    };
    let fields = run.as_object().into_iter().flatten();
    let kept = fields.filter(|(name, value)| IMAGE_FIELDS.contains(&name.as_str()) && says(value));
    Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The image's run configuration with the fields that older clients expect to be there.
fn config(run: &Value) -> Value {
    let mut config = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false, "AttachStderr": false,
        "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null, "Image": "", "Volumes": null,
        "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null,
    });
    if let (Some(config), Some(run)) = (config.as_object_mut(), run.as_object()) {
        config.extend(run.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_additions_to_the_configuration_survive() {
        let config = config(&json!({"Cmd": ["sh"], "Healthcheck": {"Test": ["CMD", "x"]}, "Shell": ["/bin/ash"]}));
        assert_eq!(config["Cmd"], json!(["sh"]));
        assert_eq!(config["Healthcheck"]["Test"][1], "x");
        assert_eq!(config["Entrypoint"], Value::Null);
        assert_eq!(super::config(&Value::Null)["User"], "");
        let newer =
            image_config(&json!({"Cmd": ["sh"], "User": "", "Hostname": "x", "Healthcheck": {"Test": ["NONE"]}}));
        assert_eq!(newer, json!({"Cmd": ["sh"], "Healthcheck": {"Test": ["NONE"]}}));
        assert_eq!(image_config(&Value::Null), json!({}));
    }
}
