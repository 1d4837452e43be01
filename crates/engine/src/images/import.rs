//! `POST /images/create?fromSrc=-`: an image from a root file system.

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
    fn platforms_name_a_processor() {
        assert_eq!(architecture(Some("linux/arm64/v8")).unwrap().as_deref(), Some("arm64"));
        assert_eq!(architecture(Some("linux")).unwrap(), None);
        assert!(architecture(Some("windows/amd64")).is_err());
    }
}
