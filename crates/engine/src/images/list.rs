//! `GET /images/json`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use image::{ImageStore, ImageSummary};
use proto::Digest;
use serde_json::{Value, json};

use super::{blocking, not_resolved, pattern};
use crate::clock::Timestamp;
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::filters::Filters;
use crate::query::Query;
use crate::version::ApiVersion;

/// From this version on a nameless image has empty lists instead of `<none>`.
const EMPTY_NAMES_SINCE: ApiVersion = ApiVersion::new(1, 43);

pub(super) async fn list(engine: Arc<Engine>, query: &Query, version: ApiVersion) -> ApiResult<Response> {
    let filters = query.filters()?;
    filters.only(&["reference", "dangling", "label", "before", "since", "until"])?;
    let containers = container_counts(&engine);
    let (with_shared, with_steps) = (query.flag("shared-size"), query.flag("all"));
    let images = blocking(&engine, move |store| {
        let all = store.list();
        let bounds = Bounds::read(store, &filters)?;
        let shared = with_shared.then(|| shared_bytes(store, &all));
        let shown = all
            .iter()
            .filter(|image| (with_steps || !is_step(image)) && bounds.hold(image) && names_fit(&filters, image));
        Ok(shown
            .map(|image| {
                let shared = shared.as_ref().map(|shared| shared.get(&image.id).copied().unwrap_or_default());
                entry(image, &filters, version, containers.get(&image.id).copied().unwrap_or_default(), shared)
            })
            .collect::<Vec<Value>>())
    })
    .await?;
    Ok(Json(images).into_response())
}

/// Every image as `GET /images/json?shared-size=1` lists it.
pub(crate) fn entries(engine: &Engine) -> Vec<Value> {
    let (all, containers) = (engine.images.list(), container_counts(engine));
    let shared = shared_bytes(&engine.images, &all);
    let count = |image: &ImageSummary| containers.get(&image.id).copied().unwrap_or_default();
    let none = Filters::default();
    all.iter()
        .filter(|image| !is_step(image))
        .map(|image| entry(image, &none, crate::version::MAX, count(image), shared.get(&image.id).copied()))
        .collect()
}

/// A step on a build's way to another image.
pub(super) fn is_step(image: &ImageSummary) -> bool {
    image.has_children && image.repo_tags.is_empty() && image.repo_digests.is_empty()
}

/// How many containers were made from each image.
fn container_counts(engine: &Engine) -> HashMap<Digest, u64> {
    let mut counts: HashMap<Digest, u64> = HashMap::new();
    for container in engine.containers.all() {
        *counts.entry(container.record().image_id.clone()).or_default() += 1;
    }
    counts
}

/// The filters that compare an image as a whole.
struct Bounds<'a> {
    filters: &'a Filters,
    dangling: Option<bool>,
    /// Seconds since the epoch, and nanoseconds beyond.
    before: Option<(i64, u32)>,
    since: Option<(i64, u32)>,
    until: Option<i64>,
}

impl<'a> Bounds<'a> {
    fn read(store: &ImageStore, filters: &'a Filters) -> ApiResult<Self> {
        let created = |key: &str| -> ApiResult<Option<(i64, u32)>> {
            let image = filters.values(key).next().map(|name| store.resolve(name)).transpose();
            Ok(image.map_err(|error| not_resolved(&error))?.map(|image| image.created_at()))
        };
        Ok(Self {
            filters,
            dangling: filters.truth("dangling")?,
            before: created("before")?,
            since: created("since")?,
            until: filters.until()?.map(Timestamp::seconds),
        })
    }

    fn hold(&self, image: &ImageSummary) -> bool {
        self.dangling.is_none_or(|wanted| image.repo_tags.is_empty() == wanted)
            && self.before.is_none_or(|bound| (image.created_unix, image.created_ns) < bound)
            && self.since.is_none_or(|bound| (image.created_unix, image.created_ns) > bound)
            && self.until.is_none_or(|bound| image.created_unix < bound)
            && self.filters.fits_labels("label", |name| image.labels.get(name).map(String::as_str))
    }
}

/// At least one of the image's names fits the filter `reference`.
fn names_fit(filters: &Filters, image: &ImageSummary) -> bool {
    !filters.has("reference") || image.repo_tags.iter().chain(&image.repo_digests).any(|name| name_fits(filters, name))
}

/// A pattern stands for the name with its tag, or for the repository alone.
fn name_fits(filters: &Filters, name: &str) -> bool {
    let repository = match name.split_once('@') {
        Some((repository, _)) => repository,
        None => name.rsplit_once(':').map_or(name, |(repository, _)| repository),
    };
    filters.fits("reference", |wanted| pattern::fits(wanted, name) || pattern::fits(wanted, repository))
}

fn entry(image: &ImageSummary, filters: &Filters, version: ApiVersion, containers: u64, shared: Option<u64>) -> Value {
    let fitting =
        |names: &[String]| -> Vec<String> { names.iter().filter(|name| name_fits(filters, name)).cloned().collect() };
    let (mut tags, mut digests) = (fitting(&image.repo_tags), fitting(&image.repo_digests));
    if tags.is_empty() && digests.is_empty() && version < EMPTY_NAMES_SINCE {
        tags = vec!["<none>:<none>".into()];
        digests = vec!["<none>@<none>".into()];
    }
    json!({
        "Id": image.id.as_str(),
        "ParentId": image.parent.as_ref().map_or("", Digest::as_str),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": image.created_unix,
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "SharedSize": shared.map_or(json!(-1), |bytes| json!(bytes)),
        "Labels": if image.labels.is_empty() { Value::Null } else { json!(image.labels) },
        "Containers": containers,
    })
}

/// For each image the bytes in layers that another image has as well.
fn shared_bytes(store: &ImageStore, all: &[ImageSummary]) -> HashMap<Digest, u64> {
    let images: Vec<_> = all.iter().filter_map(|image| store.image(&image.id)).collect();
    let mut owners: HashMap<&Digest, u64> = HashMap::new();
    for image in &images {
        let mut seen: Vec<&Digest> = image.diff_ids.iter().collect();
        seen.sort();
        seen.dedup();
        for layer in seen {
            *owners.entry(layer).or_default() += 1;
        }
    }
    let shared = |image: &image::Image| {
        let layers = image.diff_ids.iter().zip(&image.layer_bytes);
        layers.filter(|(layer, _)| owners.get(layer).is_some_and(|count| *count > 1)).map(|(_, bytes)| bytes).sum()
    };
    images.iter().map(|image| (image.id.clone(), shared(image))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str]) -> ImageSummary {
        ImageSummary {
            id: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: Vec::new(),
            created_unix: 100,
            created_ns: 5,
            size_bytes: 5,
            labels: [("a".to_owned(), "b".to_owned())].into(),
            parent: None,
            has_children: false,
        }
    }

    fn filters(json: &str) -> Filters {
        Filters::parse(json).unwrap()
    }

    #[test]
    fn a_reference_is_a_pattern_for_name_or_repository() {
        let image = image(&["busybox:latest", "localhost:5000/me/app:v1"]);
        for (wanted, fits) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("busybox:1", false),
            ("busy*", true),
            ("localhost:5000/me/app", true),
            ("*/*/app:v?", true),
            ("app", false),
        ] {
            let filters = filters(&format!("{{\"reference\":[\"{wanted}\"]}}"));
            assert_eq!(names_fit(&filters, &image), fits, "{wanted}");
        }
        let only = entry(&image, &filters(r#"{"reference":["busy*"]}"#), crate::version::MAX, 0, None);
        assert_eq!(only["RepoTags"], json!(["busybox:latest"]));
    }

    #[test]
    fn nameless_images_are_dangling() {
        let none = Filters::default();
        let old = entry(&image(&[]), &none, ApiVersion::new(1, 41), 2, None);
        assert_eq!((&old["RepoTags"], &old["Containers"]), (&json!(["<none>:<none>"]), &json!(2)));
        assert_eq!(entry(&image(&[]), &none, crate::version::MAX, 0, Some(3))["RepoTags"], json!([]));
        let wanted = filters(r#"{"dangling":["true"]}"#);
        let bounds = Bounds { filters: &wanted, dangling: Some(true), before: None, since: None, until: None };
        assert!(bounds.hold(&image(&[])) && !bounds.hold(&image(&["x:1"])));
    }

    #[test]
    fn bounds_leave_the_named_image_itself_out() {
        let none = filters(r#"{"label":["a=b"]}"#);
        let with = |before, since| Bounds { filters: &none, dangling: None, before, since, until: None };
        assert!(with(Some((101, 0)), Some((99, 9))).hold(&image(&[])));
        assert!(with(Some((100, 6)), Some((100, 4))).hold(&image(&[])), "within one second");
        let itself = Some((100, 5));
        assert!(!with(itself, None).hold(&image(&[])) && !with(None, itself).hold(&image(&[])));
    }
}
