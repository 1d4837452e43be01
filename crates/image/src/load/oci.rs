//! `index.json` and what it leads to. Source: OCI image-spec, image-layout.md, image-index.md, manifest.md.

use std::collections::BTreeMap;

use proto::Digest;
use serde::Deserialize;

use super::spool::{Spool, SpoolFault, SpooledFile, blob_name};
use super::{FoundImage, FoundLayer, LoadError};
use crate::compression::Compression;
use crate::config::host_architecture;
use crate::limits::{MAX_ARCHIVE_IMAGES, MAX_INDEX_DEPTH, MAX_INDEX_MANIFESTS, MAX_LAYERS};
use crate::reference::Reference;

pub(super) const INDEX: &str = "index.json";
/// Holds a full name; containerd and BuildKit write it.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// Holds a tag, or with some writers a full name.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// Marks signatures and provenance beside an image.
const ATTESTATION_ANNOTATION: &str = "vnd.docker.reference.type";

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// Media types of layers. Docker's says gzip whatever it is, so its compression is not held against it.
const LAYER_TYPES: [(&str, Option<Compression>); 8] = [
    ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", Some(Compression::None)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Some(Compression::Zstd)),
    ("application/vnd.docker.image.rootfs.diff.tar", None),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", None),
];

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest: which of them, its own fields must agree on (CVE-2021-41190).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

enum Parsed {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

/// What a manifest says of a blob.
pub(super) struct DeclaredBlob {
    size: u64,
    compression: Option<Compression>,
}

impl DeclaredBlob {
    /// Holds it against what is there.
    pub fn check(&self, name: &str, file: &SpooledFile<'_>) -> Result<(), LoadError> {
        let invalid = |reason| LoadError::Invalid { name: name.to_owned(), reason };
        if file.len() != self.size {
            return Err(invalid("its length is not what the manifest says"));
        }
        let head = file
            .head()
            .map_err(|error| LoadError::File { name: name.to_owned(), fault: SpoolFault::Temporary(error) })?;
        match (self.compression, Compression::of(&head)) {
            (Some(declared), Ok(found)) if declared != found => {
                Err(invalid("its compression is not what the manifest says"))
            }
            _ => Ok(()),
        }
    }
}

impl Descriptor {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Its platform, unless it says none or that it has none.
    fn platform_text(&self) -> Option<String> {
        let platform = self.platform.as_ref()?;
        (platform.os != "unknown").then(|| format!("{}/{}", platform.os, platform.architecture))
    }

    fn is_attestation(&self) -> bool {
        let unknown = self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        unknown || self.annotation(ATTESTATION_ANNOTATION).is_some()
    }

    fn is_image(&self) -> bool {
        let type_of = |types: &[&str]| types.contains(&self.media_type.as_str());
        self.media_type.is_empty() || type_of(&INDEX_TYPES) || type_of(&MANIFEST_TYPES)
    }
}

/// Finds the images of a layout: one for every name, and those without a name, each as it is for this host.
pub(super) fn find_images(spool: &Spool) -> Result<Vec<FoundImage>, LoadError> {
    let invalid = |reason| LoadError::Invalid { name: INDEX.to_owned(), reason };
    let Parsed::Index(top) = parse(INDEX, &spool.read_json(INDEX)?, None)? else {
        return Err(invalid("it is not an index"));
    };
    if top.len() > MAX_ARCHIVE_IMAGES {
        return Err(invalid("it lists too many images"));
    }
    // By the manifest that was chosen: the same image may stand there under several names.
    let mut images: Vec<(Digest, FoundImage)> = Vec::new();
    let mut passed_over = Vec::new();
    let top: Vec<&Descriptor> = top.iter().filter(|one| one.is_image() && !one.is_attestation()).collect();
    for descriptor in &top {
        let name = name_of(descriptor)?;
        // Entries without names may be one image for several platforms.
        let choice = if name.is_some() || top.len() == 1 {
            choose(spool, descriptor, 1, &mut passed_over)?
        } else {
            match descriptor.platform_text() {
                Some(platform) if platform != host_platform() => {
                    passed_over.push(platform);
                    None
                }
                _ => choose(spool, descriptor, 1, &mut passed_over)?,
            }
        };
        let Some(manifest) = choice else { continue };
        match images.iter_mut().find(|(digest, _)| *digest == manifest.digest) {
            Some((_, image)) => image.names.extend(name),
            None => images.push((manifest.digest.clone(), image_of(spool, &manifest, name)?)),
        }
    }
    if images.is_empty() {
        passed_over.sort();
        passed_over.dedup();
        return Err(match passed_over.is_empty() {
            true => invalid("it lists no images"),
            false => LoadError::NoPlatform {
                wanted: host_architecture().to_owned(),
                found: passed_over.into_iter().take(20).collect::<Vec<_>>().join(", "),
            },
        });
    }
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

fn host_platform() -> String {
    format!("linux/{}", host_architecture())
}

/// The manifest for this host below a descriptor; platforms that were not taken go to `passed_over`.
fn choose(
    spool: &Spool,
    descriptor: &Descriptor,
    depth: usize,
    passed_over: &mut Vec<String>,
) -> Result<Option<Descriptor>, LoadError> {
    let name = blob_name(&descriptor.digest);
    let bytes = spool.read_blob_json(&descriptor.digest)?;
    if bytes.len() as u64 != descriptor.size {
        return Err(LoadError::Invalid { name, reason: "its length is not what the index says" });
    }
    let Parsed::Index(manifests) = parse(&name, &bytes, Some(&descriptor.media_type))? else {
        return Ok(Some(descriptor.clone()));
    };
    // An index cannot contain its own digest, but a long chain of them is no less of a nuisance.
    if depth >= MAX_INDEX_DEPTH {
        return Err(LoadError::Invalid { name, reason: "indexes are nested too deep" });
    }
    let candidates = manifests.iter().filter(|one| one.is_image() && !one.is_attestation());
    for candidate in candidates {
        match candidate.platform_text() {
            Some(platform) if platform != host_platform() => passed_over.push(platform),
            _ => {
                if let Some(chosen) = choose(spool, candidate, depth + 1, passed_over)? {
                    return Ok(Some(chosen));
                }
            }
        }
    }
    Ok(None)
}

fn image_of(spool: &Spool, manifest: &Descriptor, name: Option<Reference>) -> Result<FoundImage, LoadError> {
    let manifest_name = blob_name(&manifest.digest);
    let bytes = spool.read_blob_json(&manifest.digest)?;
    let Parsed::Manifest { config, layers } = parse(&manifest_name, &bytes, None)? else {
        return Err(LoadError::Invalid { name: manifest_name, reason: "it is not a manifest" });
    };
    if layers.len() > MAX_LAYERS {
        return Err(LoadError::Invalid { name: manifest_name, reason: "it lists too many layers" });
    }
    let found_layer = |layer: &Descriptor| {
        let known = LAYER_TYPES.iter().find(|(media_type, _)| *media_type == layer.media_type);
        let Some((_, compression)) = known else {
            let reason = "a layer has a media type that is not known";
            return Err(LoadError::Invalid { name: manifest_name.clone(), reason });
        };
        let declared = DeclaredBlob { size: layer.size, compression: *compression };
        Ok(FoundLayer { name: blob_name(&layer.digest), digest: Some(layer.digest.clone()), declared: Some(declared) })
    };
    let layers = layers.iter().map(found_layer).collect::<Result<_, _>>()?;
    Ok(FoundImage {
        config_name: blob_name(&config.digest),
        config_digest: Some(config.digest),
        layers,
        names: name.into_iter().collect(),
    })
}

fn name_of(descriptor: &Descriptor) -> Result<Option<Reference>, LoadError> {
    let invalid = || LoadError::Invalid { name: INDEX.to_owned(), reason: "an annotation holds no image name" };
    if let Some(name) = descriptor.annotation(NAME_ANNOTATION) {
        return name.parse().map(Some).map_err(|_| invalid());
    }
    // A tag alone names no repository.
    let full_name = descriptor.annotation(REF_ANNOTATION).filter(|name| name.contains([':', '/']));
    full_name.map(|name| name.parse().map_err(|_| invalid())).transpose()
}

fn parse(name: &str, bytes: &[u8], expected_type: Option<&str>) -> Result<Parsed, LoadError> {
    let invalid = |reason| LoadError::Invalid { name: name.to_owned(), reason };
    let document: Document =
        serde_json::from_slice(bytes).map_err(|source| LoadError::Document { name: name.to_owned(), source })?;
    if let (Some(own), Some(expected)) = (document.media_type.as_deref(), expected_type)
        && !expected.is_empty()
        && own != expected
    {
        return Err(invalid("its media type is not the one it is listed with"));
    }
    let declared = document.media_type.as_deref().or(expected_type).unwrap_or_default();
    let (is_index, is_manifest) = (INDEX_TYPES.contains(&declared), MANIFEST_TYPES.contains(&declared));
    match (document.manifests, document.config, document.layers) {
        (Some(_), None, None) if is_manifest => Err(invalid("its media type says manifest and it is an index")),
        (Some(manifests), None, None) if manifests.len() <= MAX_INDEX_MANIFESTS => Ok(Parsed::Index(manifests)),
        (Some(_), None, None) => Err(invalid("it lists too many manifests")),
        (None, Some(_), Some(_)) if is_index => Err(invalid("its media type says index and it is a manifest")),
        (None, Some(config), Some(layers)) => Ok(Parsed::Manifest { config, layers }),
        (Some(_), _, _) => Err(invalid("it is an index and a manifest at once")),
        (None, _, _) => Err(invalid("it is neither an index nor a manifest")),
    }
}
