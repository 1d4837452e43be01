//! Archives for the tests of this crate.

pub mod random_tree;
pub mod reader;
pub mod seen;

use std::io::{Cursor, Write};

use proto::Digest;
use serde_json::json;

use crate::compression::digest_of;
use crate::config::host_architecture;

/// Header fields of an entry as a test wants them, however wrong.
pub struct RawEntry<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub content: &'a [u8],
    pub mode: u32,
    pub uid: &'a [u8],
    pub device: (u32, u32),
    pub pax: &'a [(&'a str, &'a [u8])],
}

impl Default for RawEntry<'_> {
    fn default() -> Self {
        Self { path: b"f", kind: b'0', link: b"", content: b"", mode: 0o644, uid: b"0000000", device: (0, 0), pax: &[] }
    }
}

impl RawEntry<'_> {
    /// Its bytes in a tar stream. Paths and links over 100 bytes go to PAX records.
    pub fn bytes(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut pax: Vec<(&str, &[u8])> = self.pax.to_vec();
        if self.path.len() > 100 {
            pax.push(("path", self.path));
        }
        if self.link.len() > 100 {
            pax.push(("linkpath", self.link));
        }
        for (key, value) in pax {
            records.extend(pax_record(key, value));
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            bytes.extend(block(b"pax", b'x', b"", &records, 0o644, b"0000000", (0, 0)));
        }
        bytes.extend(block(self.path, self.kind, self.link, self.content, self.mode, self.uid, self.device));
        bytes
    }
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

#[allow(clippy::too_many_arguments, reason = "a header has that many fields")]
fn block(path: &[u8], kind: u8, link: &[u8], content: &[u8], mode: u32, uid: &[u8], device: (u32, u32)) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let cut = |text: &[u8]| text[..text.len().min(100)].to_vec();
    let mut put = |at: usize, value: &[u8]| header[at..at + value.len()].copy_from_slice(value);
    put(0, &cut(path));
    put(100, format!("{mode:07o}").as_bytes());
    put(108, uid);
    put(116, b"0000000");
    put(124, format!("{:011o}", content.len()).as_bytes());
    put(136, b"14000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &cut(link));
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", device.0).as_bytes());
    put(337, format!("{:07o}", device.1).as_bytes());
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A tar stream of these entries.
pub fn tar_of(entries: &[RawEntry<'_>]) -> Vec<u8> {
    let mut bytes = entries.iter().map(RawEntry::bytes).collect::<Vec<_>>().concat();
    bytes.extend([0; 1024]);
    bytes
}

pub fn folder(path: &str) -> RawEntry<'_> {
    RawEntry { path: path.as_bytes(), kind: b'5', mode: 0o755, ..RawEntry::default() }
}

pub fn file<'a>(path: &'a str, content: &'a str) -> RawEntry<'a> {
    RawEntry { path: path.as_bytes(), content: content.as_bytes(), ..RawEntry::default() }
}

pub fn symlink<'a>(path: &'a str, target: &'a str) -> RawEntry<'a> {
    RawEntry { path: path.as_bytes(), kind: b'2', link: target.as_bytes(), ..RawEntry::default() }
}

pub fn hard_link<'a>(path: &'a str, target: &'a str) -> RawEntry<'a> {
    RawEntry { path: path.as_bytes(), kind: b'1', link: target.as_bytes(), ..RawEntry::default() }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(Cursor::new(bytes), 1).unwrap()
}

/// A layer with one file.
pub fn layer(path: &str, content: &str) -> Vec<u8> {
    tar_of(&[file(path, content)])
}

/// An image configuration over these layers, given as uncompressed tar streams.
pub fn config_of(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| digest_of(layer)).collect();
    let config = json!({
        "architecture": host_architecture(), "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": { "Cmd": ["sh"] }, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": layers.iter().map(|_| json!({ "created_by": "test" })).collect::<Vec<_>>(),
    });
    config.to_string().into_bytes()
}

/// Files of an archive by name.
pub type Files = Vec<(String, Vec<u8>)>;

/// An archive with these files.
pub fn archive(files: &Files) -> Vec<u8> {
    let entries: Vec<_> = files
        .iter()
        .map(|(name, content)| RawEntry { path: name.as_bytes(), content, ..RawEntry::default() })
        .collect();
    tar_of(&entries)
}

/// What `docker save` makes of one image.
pub fn docker_files(layers: &[&[u8]], tags: &[&str]) -> Files {
    let config = config_of(layers);
    let config_name = format!("{}.json", digest_of(&config).hex());
    let names: Vec<String> = (0..layers.len()).map(|index| format!("layer{index}/layer.tar")).collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    let mut files: Files = names.into_iter().zip(layers.iter().map(|layer| layer.to_vec())).collect();
    files.push((config_name, config));
    files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    files
}

/// The blobs of an OCI layout, filled one by one.
#[derive(Default)]
pub struct OciLayout {
    pub files: Files,
}

impl OciLayout {
    /// Adds a blob; gives its descriptor.
    pub fn blob(&mut self, media_type: &str, content: &[u8]) -> serde_json::Value {
        let digest = digest_of(content);
        self.files.push((format!("blobs/sha256/{}", digest.hex()), content.to_vec()));
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// Adds an image with one layer; gives its manifest's descriptor.
    pub fn image(&mut self, config: &[u8], layer_type: &str, layer: &[u8]) -> serde_json::Value {
        let config = self.blob("application/vnd.oci.image.config.v1+json", config);
        let layer = self.blob(layer_type, layer);
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        self.blob(MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    /// Adds an index; gives its descriptor.
    pub fn index(&mut self, manifests: &[serde_json::Value]) -> serde_json::Value {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.blob(INDEX_TYPE, index.to_string().as_bytes())
    }

    /// The archive, with these entries in `index.json`.
    pub fn archive(&self, manifests: &[serde_json::Value]) -> Vec<u8> {
        let mut files = self.files.clone();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        archive(&files)
    }
}

pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
