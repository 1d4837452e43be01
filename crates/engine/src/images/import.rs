//! `POST /images/create?fromSrc=-`: an image from a root file system.

use std::io::Read;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use image::{ImportOptions, Reference};
use serde_json::json;

use super::{progress, publish, reference};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::fetch;
use crate::query::Query;
use crate::reader;

pub(super) async fn create(engine: Arc<Engine>, query: &Query, body: Body) -> ApiResult<Response> {
    let source = query.get("fromSrc").ok_or_else(|| ApiError::invalid("one of fromImage and fromSrc is needed"))?;
    // As dockerd, which takes a URL without a scheme.
    let url =
        (source != "-").then(|| if fetch::is_url(source) { source.to_owned() } else { format!("http://{source}") });
    let options = ImportOptions {
        reference: reference(query)?,
        changes: query.all("changes").filter(|change| !change.is_empty()).map(str::to_owned).collect(),
        message: query.get("message").map_or_else(|| format!("Imported from {source}"), str::to_owned),
        architecture: architecture(query.get("platform"))?,
        ..ImportOptions::default()
    };
    let rootfs = reader::of_body(body);
    progress::answer(move |lines| {
        let rootfs: Box<dyn Read + Send> = match &url {
            None => Box::new(rootfs),
            Some(url) => {
                lines.send(json!({"status": format!("Downloading from {url}")}));
                Box::new(fetch::fetch(url, &engine.stopping)?.body)
            }
        };
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
