//! Manifests and indexes: read strictly, since two readers that understand one differently are a hole (CVE-2021-41190).
//! Source: OCI image-spec, manifest.md and image-index.md; distribution, "Image Manifest Version 2, Schema 2".

use std::collections::BTreeMap;

use proto::Digest;
use serde::{Deserialize, Serialize};

use super::error::RegistryError;
use crate::compression::Compression;
use crate::config::host_architecture;
use crate::limits::{MAX_INDEX_MANIFESTS, MAX_JSON_BYTES, MAX_LAYER_BYTES, MAX_LAYERS};

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(super) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's old, unverifiable form.
const SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// Media types of layers. Docker's says gzip whatever it is, so its compression is not held against it.
const LAYER_TYPES: [(&str, Option<Compression>); 5] = [
    ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
    ("application/vnd.docker.image.rootfs.diff.tar", None),
    (DOCKER_LAYER, None),
];

/// What is named by a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub size: u64,
    pub digest: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, size, digest, urls: Vec::new(), platform: None, annotations: BTreeMap::new() }
    }
}

/// An operating system and a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// In Go's words.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
    /// Of the processor, such as `v8`; empty if it does not matter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This host's.
    #[must_use]
    pub fn host() -> Self {
        Self { architecture: host_architecture().to_owned(), os: "linux".to_owned(), variant: String::new() }
    }

    /// Reads `os[/architecture[/variant]]`. Source: containerd, platforms.Parse.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (os, architecture, variant) = (parts.next()?, parts.next(), parts.next().unwrap_or_default());
        let valid = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if parts.next().is_some() || !text.split('/').all(|part| !part.is_empty() && valid(part)) {
            return None;
        }
        let (architecture, variant) = match architecture {
            None => (host_architecture(), variant),
            Some("x86_64" | "x86-64") => ("amd64", variant),
            Some("aarch64") => ("arm64", variant),
            Some(other) => (other, variant),
        };
        let os = os.to_ascii_lowercase();
        Some(Self { architecture: architecture.to_owned(), os, variant: variant.to_owned() })
    }

    /// How well `offered` serves who wants this: lower is better, `None` not at all.
    fn distance(&self, offered: &Self) -> Option<usize> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        // What a processor's newer variants run: their own first, then older ones.
        let order: &[&str] = match self.architecture.as_str() {
            "amd64" => &["v4", "v3", "v2", "v1"],
            "arm64" => &["v9", "v8"],
            "arm" => &["v8", "v7", "v6", "v5"],
            _ => &[],
        };
        // Nothing said is the least that is common, except on arm.
        let normal = |variant: &str| match (self.architecture.as_str(), variant) {
            ("amd64", "") => "v1".to_owned(),
            ("arm64", "") => "v8".to_owned(),
            ("arm", "") => "v7".to_owned(),
            (_, variant) => variant.to_owned(),
        };
        let (wanted, offered) = (normal(&self.variant), normal(&offered.variant));
        let place = |variant: &str| order.iter().position(|known| *known == variant);
        match (place(&wanted), place(&offered)) {
            (Some(wanted), Some(offered)) => offered.checked_sub(wanted),
            _ => (wanted == offered).then_some(0),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// An image's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a document that was sent as `media_type` (parameters are cut off).
pub(super) fn parse(what: &str, media_type: &str, bytes: &[u8]) -> Result<Document, RegistryError> {
    let refused = |reason: &str| RegistryError::refused(what, reason);
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if SCHEMA1.contains(&media_type) {
        return Err(refused("its form, schema 1, is no longer supported; push the image again with a current client"));
    }
    let is_index = match media_type {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        _ => return Err(refused(&format!("its type {:?} is that of no image", cut(media_type)))),
    };
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| refused(&format!("it is malformed: {error}")))?;
    if raw.schema_version != Some(2) {
        return Err(refused("its schema version is not 2"));
    }
    if raw.media_type.as_deref().is_some_and(|own| own != media_type) {
        return Err(refused("it was sent as another type than it says itself"));
    }
    if raw.media_type.is_none() && matches!(media_type, DOCKER_LIST | DOCKER_MANIFEST) {
        return Err(refused("it does not say its type"));
    }
    if raw.fs_layers.is_some() {
        return Err(refused("it has parts of another schema"));
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if is_index => {
            if manifests.len() > MAX_INDEX_MANIFESTS {
                return Err(refused("it lists too many manifests"));
            }
            Ok(Document::Index(manifests))
        }
        (None, Some(config), Some(layers)) if !is_index => {
            let manifest = Manifest { config, layers };
            manifest.check().map_err(|reason| refused(&reason))?;
            Ok(Document::Manifest(manifest))
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(refused("it is an index and a manifest at once")),
        _ => Err(refused("its parts are not those of its type")),
    }
}

impl Manifest {
    fn check(&self) -> Result<(), String> {
        if !matches!(self.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(format!("it holds no image but {:?}", cut(&self.config.media_type)));
        }
        if self.config.size > MAX_JSON_BYTES {
            return Err("its configuration is too large".to_owned());
        }
        if self.layers.len() > MAX_LAYERS {
            return Err("it lists too many layers".to_owned());
        }
        for layer in &self.layers {
            if !layer.urls.is_empty()
                || layer.media_type.contains("foreign")
                || layer.media_type.contains("nondistributable")
            {
                return Err("a layer is to be fetched from somewhere else".to_owned());
            }
            if compression(&layer.media_type).is_none() {
                return Err(format!("a layer has the type {:?}, which is not known", cut(&layer.media_type)));
            }
            if layer.size > MAX_LAYER_BYTES {
                return Err("a layer is too large".to_owned());
            }
        }
        Ok(())
    }
}

/// The compression that a layer's type promises, `Some(None)` if it promises nothing; `None`: no layer's type.
pub(super) fn compression(media_type: &str) -> Option<Option<Compression>> {
    LAYER_TYPES.iter().find(|(known, _)| *known == media_type).map(|(_, compression)| *compression)
}

/// The image manifest for a platform; of several that fit the best, of equals the first.
pub(super) fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, RegistryError> {
    let images =
        || manifests.iter().filter(|one| one.platform.as_ref().is_none_or(|platform| platform.os != "unknown"));
    let fitting = images().filter_map(|one| Some((wanted.distance(one.platform.as_ref()?)?, one)));
    if let Some((_, best)) = fitting.min_by_key(|(distance, _)| *distance) {
        return Ok(best);
    }
    // A single image that does not say what it is for.
    let mut unnamed = images().filter(|one| one.platform.is_none());
    if let (Some(only), None) = (unnamed.next(), unnamed.next()) {
        return Ok(only);
    }
    let mut found: Vec<String> =
        images().filter_map(|one| one.platform.as_ref()).map(|p| cut(&p.to_string())).collect();
    found.dedup();
    found.truncate(20);
    Err(RegistryError::NoPlatform { wanted: wanted.to_string(), found: found.join(", ") })
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::digest_of;

    fn descriptor(platform: Option<&str>, seed: &str) -> Descriptor {
        let platform = platform.map(|text| {
            let mut parts = text.split('/').map(str::to_owned);
            let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
            Platform { os, architecture, variant: parts.next().unwrap_or_default() }
        });
        Descriptor { platform, ..Descriptor::new(OCI_MANIFEST, digest_of(seed.as_bytes()), 1) }
    }

    #[test]
    fn the_best_variant_is_chosen_and_attestations_never() {
        let list = [
            descriptor(Some("unknown/unknown"), "attestation"),
            descriptor(Some("linux/amd64/v3"), "v3"),
            descriptor(Some("linux/amd64"), "amd64"),
            descriptor(Some("linux/arm/v6"), "v6"),
            descriptor(Some("linux/arm/v7"), "v7"),
            descriptor(Some("linux/arm64/v8"), "arm64"),
            descriptor(Some("windows/amd64"), "windows"),
        ];
        for (wanted, seed) in [
            ("linux/amd64", "amd64"),
            ("linux/amd64/v4", "v3"),
            ("linux/amd64/v2", "amd64"),
            ("linux/arm64", "arm64"),
            ("linux/aarch64", "arm64"),
            ("linux/arm", "v7"),
            ("linux/arm/v6", "v6"),
            ("windows/amd64", "windows"),
        ] {
            let chosen = choose(&list, &Platform::parse(wanted).unwrap()).unwrap();
            assert_eq!(chosen.digest, digest_of(seed.as_bytes()), "{wanted}");
        }
        for nowhere in ["linux/s390x", "linux/arm/v5"] {
            let error = choose(&list, &Platform::parse(nowhere).unwrap()).unwrap_err();
            assert!(matches!(error, RegistryError::NoPlatform { .. }), "{error}");
        }
        for bad in ["", "linux/", "linux/a/b/c", "linux/../x", "a b"] {
            assert_eq!(Platform::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn f34_ambiguous_documents_are_refused() {
        let digest = digest_of(b"x");
        let config = format!(r#"{{"mediaType":"{OCI_CONFIG}","size":1,"digest":"{digest}"}}"#);
        let manifest =
            |own: &str, rest: &str| format!(r#"{{"schemaVersion":2{own},"config":{config},"layers":[]{rest}}}"#);
        let index = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
        let says = |media_type: &str| format!(r#","mediaType":"{media_type}""#);
        assert!(parse("m", OCI_MANIFEST, manifest("", "").as_bytes()).is_ok());
        assert!(parse("m", &format!("{OCI_MANIFEST}; charset=utf-8"), manifest("", "").as_bytes()).is_ok());
        assert!(parse("m", OCI_INDEX, index.as_bytes()).is_ok());
        for (media_type, text) in [
            (OCI_MANIFEST, manifest("", r#","manifests":[]"#)),
            (OCI_INDEX, manifest("", r#","manifests":[]"#)),
            (OCI_INDEX, manifest("", "")),
            (OCI_MANIFEST, index.clone()),
            (OCI_MANIFEST, manifest(&says(OCI_INDEX), "")),
            (OCI_MANIFEST, manifest(&says(DOCKER_MANIFEST), "")),
            (DOCKER_MANIFEST, manifest("", "")),
            (DOCKER_MANIFEST, manifest(&says(DOCKER_MANIFEST), r#","fsLayers":[]"#)),
            (OCI_MANIFEST, manifest(&says(OCI_MANIFEST).repeat(2), "")),
            (SCHEMA1[1], manifest("", "")),
            ("application/json", manifest("", "")),
            ("", manifest("", "")),
            (OCI_MANIFEST, manifest("", "").replace("\"schemaVersion\":2", "\"schemaVersion\":1")),
        ] {
            assert!(parse("m", media_type, text.as_bytes()).is_err(), "{media_type} {text}");
        }
    }

    #[test]
    fn f35_other_digests_than_sha256_in_lower_hex_are_refused() {
        let zeros = "0".repeat(64);
        for digest in [
            "sha256:../..".to_owned(),
            format!("sha256:{}", "A".repeat(64)),
            "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
            format!("sha512:{}", "0".repeat(128)),
            String::new(),
            zeros.clone(),
            format!("sha256:{zeros}0"),
            format!("sha256:{}", &zeros[1..]),
            format!("sha256:{zeros}/../x"),
        ] {
            let text = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","size":1,"digest":"{digest}"}},"layers":[]}}"#
            );
            assert!(parse("m", OCI_MANIFEST, text.as_bytes()).is_err(), "{digest}");
        }
    }

    #[test]
    fn f36_an_index_of_ten_thousand_manifests_is_refused() {
        let one = format!(r#"{{"mediaType":"{OCI_MANIFEST}","size":1,"digest":"{}"}}"#, digest_of(b"x"));
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec![one; 10_000].join(","));
        assert!(parse("m", OCI_INDEX, text.as_bytes()).is_err());
    }

    #[test]
    fn f37_layers_from_elsewhere_are_refused() {
        let digest = digest_of(b"x");
        let text = |layer: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","size":1,"digest":"{digest}"}},"layers":[{layer}]}}"#
            )
        };
        let layer = |media_type: &str, rest: &str| {
            format!(r#"{{"mediaType":"{media_type}","size":1,"digest":"{digest}"{rest}}}"#)
        };
        let plain = "application/vnd.oci.image.layer.v1.tar";
        assert!(parse("m", OCI_MANIFEST, text(&layer(plain, "")).as_bytes()).is_ok());
        for bad in [
            layer(plain, r#","urls":["http://169.254.169.254/x"]"#),
            layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ""),
            layer("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", ""),
            layer("application/octet-stream", ""),
        ] {
            assert!(parse("m", OCI_MANIFEST, text(&bad).as_bytes()).is_err(), "{bad}");
        }
    }
}
