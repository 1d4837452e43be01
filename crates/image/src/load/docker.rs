//! `manifest.json`, as `docker save` writes it. Source: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::BTreeMap;

use proto::Digest;
use serde::Deserialize;

use super::spool::Spool;
use super::{FoundImage, FoundLayer, LoadError};
use crate::limits::{MAX_ARCHIVE_IMAGES, MAX_LAYERS};
use crate::reference::Reference;

pub(super) const MANIFEST: &str = "manifest.json";
/// Names of an older format, beside the manifest: `{"busybox": {"latest": "<id of the top layer's folder>"}}`.
const REPOSITORIES: &str = "repositories";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn find_images(spool: &Spool) -> Result<Vec<FoundImage>, LoadError> {
    let malformed = |source| LoadError::Document { name: MANIFEST.to_owned(), source };
    let invalid = |reason| LoadError::Invalid { name: MANIFEST.to_owned(), reason };
    let items: Vec<ManifestItem> = serde_json::from_slice(&spool.read_json(MANIFEST)?).map_err(malformed)?;
    match items.len() {
        0 => return Err(invalid("it lists no images")),
        count if count > MAX_ARCHIVE_IMAGES => return Err(invalid("it lists too many images")),
        _ => {}
    }
    let only_one = items.len() == 1;
    items
        .into_iter()
        .map(|item| {
            if item.layers.len() > MAX_LAYERS {
                return Err(invalid("an image has too many layers"));
            }
            let mut names = item
                .repo_tags
                .unwrap_or_default()
                .iter()
                .map(|name| name.parse::<Reference>().map_err(|_| invalid("a name in RepoTags is no image name")))
                .collect::<Result<Vec<_>, _>>()?;
            if names.is_empty() && only_one {
                names = repositories(spool)?;
            }
            if names.iter().any(|name| name.digest().is_some()) {
                return Err(invalid("a name in RepoTags has a digest"));
            }
            let layers = item
                .layers
                .into_iter()
                .map(|name| FoundLayer { digest: digest_in_name(&name), name, declared: None })
                .collect();
            Ok(FoundImage { config_digest: digest_in_name(&item.config), config_name: item.config, layers, names })
        })
        .collect()
}

/// Names that stand only in the older file: writers that know no RepoTags put them there. Taken only for an archive with
/// a single image, as its keys name layers in a way of their own.
fn repositories(spool: &Spool) -> Result<Vec<Reference>, LoadError> {
    if !spool.contains(REPOSITORIES) {
        return Ok(Vec::new());
    }
    let malformed = |source| LoadError::Document { name: REPOSITORIES.to_owned(), source };
    let tags: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&spool.read_json(REPOSITORIES)?).map_err(malformed)?;
    let texts = tags.iter().flat_map(|(name, tags)| tags.keys().map(move |tag| format!("{name}:{tag}")));
    texts
        .map(|text| {
            let reason = "it holds something that is no image name";
            text.parse().map_err(|_| LoadError::Invalid { name: REPOSITORIES.to_owned(), reason })
        })
        .collect()
}

/// A file called `<64 digits>.json` or `blobs/sha256/<64 digits>` must have that digest.
fn digest_in_name(name: &str) -> Option<Digest> {
    let hex = match name.strip_prefix("blobs/sha256/") {
        Some(hex) => hex,
        None => name.strip_suffix(".json")?,
    };
    format!("sha256:{hex}").parse().ok()
}
