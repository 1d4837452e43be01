//! `POST /images/create`: an image from a root file system, or from a registry.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use image::{ImportOptions, Reference};
use serde_json::json;

use super::{progress, publish, reference};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;
use crate::reader;

pub(super) async fn create(engine: Arc<Engine>, query: &Query, body: Body) -> ApiResult<Response> {
    if let Some(wanted) = query.get("fromImage") {
        return Err(cannot_pull(wanted, query.get("tag")));
    }
    match query.get("fromSrc") {
        Some("-") => {}
        Some(source) => {
            return Err(ApiError::not_implemented(format!(
                "importing from {source}: only the request's own body (-) can be imported yet"
            )));
        }
        None => return Err(ApiError::invalid("one of fromImage and fromSrc is needed")),
    }
    let options = ImportOptions {
        reference: reference(query)?,
        changes: query.all("changes").filter(|change| !change.is_empty()).map(str::to_owned).collect(),
        message: query.get("message").unwrap_or("Imported from -").to_owned(),
        architecture: architecture(query.get("platform"))?,
        ..ImportOptions::default()
    };
    let rootfs = reader::of_body(body);
    progress::answer(move |lines| {
        let id = engine.images.import(rootfs, &options).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        let name = options.reference.as_ref().map_or_else(|| id.to_string(), Reference::familiar);
        publish(&engine, "import", id.as_str(), &name);
        lines.send(json!({"status": id.as_str()}));
        Ok(())
    })
    .await
}

/// One clear line for what `docker pull` and a `docker run` of an unknown image ask for.
fn cannot_pull(name: &str, tag: Option<&str>) -> ApiError {
    let text = match tag {
        Some(tag) if tag.starts_with("sha256:") => format!("{name}@{tag}"),
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    match text.parse::<Reference>() {
        Ok(wanted) => ApiError::not_implemented(format!(
            "cannot pull {}: registries are not supported yet, load the image with 'docker load' or 'docker import'",
            wanted.familiar()
        )),
        Err(error) => ApiError::new(error.kind(), chain(&error)),
    }
}

/// The processor of a platform such as `linux/arm64`.
fn architecture(platform: Option<&str>) -> ApiResult<Option<String>> {
    let Some(platform) = platform else { return Ok(None) };
    match platform.split('/').collect::<Vec<_>>()[..] {
        ["linux"] => Ok(None),
        ["linux", architecture] | ["linux", architecture, _] => Ok(Some(architecture.to_owned())),
        _ => Err(ApiError::invalid(format!("platform {platform:?} is not supported: images are for linux"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_refused_with_what_to_do() {
        let error = cannot_pull("busybox", Some("latest"));
        assert_eq!(error.http_status(), 501);
        assert!(error.message.starts_with("cannot pull busybox:latest: registries"), "{}", error.message);
        // The docker CLI takes these words for faults of the container's command.
        for words in ["no such file", "not found", "permission denied"] {
            assert!(!error.message.contains(words));
        }
        assert_eq!(cannot_pull("Bad Name", None).http_status(), 400);
    }

    #[test]
    fn platforms_name_a_processor() {
        assert_eq!(architecture(Some("linux/arm64/v8")).unwrap().as_deref(), Some("arm64"));
        assert_eq!(architecture(Some("linux")).unwrap(), None);
        assert!(architecture(Some("windows/amd64")).is_err());
    }
}
