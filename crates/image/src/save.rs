//! Writing images as an archive that is both what `docker load` reads and an OCI image layout.
//!
//! ```text
//! blobs/sha256/<digest>  layers (uncompressed, named by their diffID), configurations, manifests
//! index.json, oci-layout OCI's directory
//! manifest.json          Docker's directory, repositories its older one
//! ```
//!
//! Source: moby image/tarexport/save.go (Docker 25 and later), OCI image-spec image-layout.md.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use proto::{Digest, ErrorKind};
use serde_json::{Value, json};

use crate::compression::digest_of;
use crate::config::Image;
use crate::failpoint;
use crate::reference::Reference;
use crate::store::{ImageLease, ImageStore, ResolveError, StoreError};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Where layouts have their blobs.
const BLOBS: &str = "blobs/sha256/";

/// Images that were not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// One of the names leads to no image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A layer cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer's tar stream is not what was added.
    #[error("layer {diff_id} cannot be read: remove its image and load it again")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// Nobody takes the archive.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
}

impl SaveError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Layer { .. } | Self::Write(_) => ErrorKind::Internal,
        }
    }
}

/// Images that are about to be saved; while it lives they are leased.
pub struct Saving<'s> {
    store: &'s ImageStore,
    images: BTreeMap<Digest, Chosen<'s>>,
}

struct Chosen<'s> {
    image: Image,
    tags: BTreeSet<Reference>,
    _lease: ImageLease<'s>,
}

impl ImageStore {
    /// Finds the images to save. Shape: a repository without a tag stands for all of its tags; an id or a digest for the image
    /// without a name.
    ///
    /// # Errors
    /// [`ResolveError`] for the first name that leads to none.
    pub fn saving(&self, names: &[String]) -> Result<Saving<'_>, ResolveError> {
        let mut saving = Saving { store: self, images: BTreeMap::new() };
        for name in names {
            let tags = self.tags_meant_by(name);
            if tags.is_empty() {
                saving.choose(name, None)?;
            }
            for tag in tags {
                saving.choose(&tag.to_string(), Some(tag))?;
            }
        }
        Ok(saving)
    }
}

impl Saving<'_> {
    fn choose(&mut self, name: &str, tag: Option<Reference>) -> Result<(), ResolveError> {
        let (image, lease) = self.store.lease(name)?;
        let chosen = self.images.entry(image.id.clone());
        chosen.or_insert_with(|| Chosen { image, tags: BTreeSet::new(), _lease: lease }).tags.extend(tag);
        Ok(())
    }

    /// The images' ids.
    pub fn ids(&self) -> impl Iterator<Item = &Digest> {
        self.images.keys()
    }

    /// Writes the archive. Shape: a tar stream; the same images give the same bytes. Each blob is in it once.
    ///
    /// # Errors
    /// As the variants of [`SaveError`] say; what was written then is no archive.
    pub fn write(&self, output: &mut dyn Write) -> Result<(), SaveError> {
        let mut archive = Archive { tar: ::tar::Builder::new(output), blobs: BTreeSet::new() };
        archive.folder("blobs/")?;
        archive.folder(BLOBS)?;
        failpoint::reach("save.begin");
        let (mut index, mut manifest) = (Vec::new(), Vec::new());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for chosen in self.images.values() {
            let descriptor = archive.image(self.store, &chosen.image)?;
            index.extend(index_entries(&descriptor, &chosen.tags));
            manifest.push(manifest_item(&chosen.image, &chosen.tags, &archive_layers(self.store, &chosen.image)?));
            if let Some(top) = chosen.image.diff_ids.last() {
                for tag in &chosen.tags {
                    let tags = repositories.entry(tag.familiar_repository()).or_default();
                    tags.insert(tag.tag().unwrap_or_default().to_owned(), top.hex().to_owned());
                }
            }
            failpoint::reach("save.image");
        }
        archive.json("index.json", &json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": index}))?;
        archive.json("manifest.json", &Value::Array(manifest))?;
        archive.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        if !repositories.is_empty() {
            archive.json("repositories", &json!(repositories))?;
        }
        archive.tar.finish().map_err(SaveError::Write)
    }
}

/// One entry for each name, or one without.
fn index_entries(descriptor: &Value, tags: &BTreeSet<Reference>) -> Vec<Value> {
    if tags.is_empty() {
        return vec![descriptor.clone()];
    }
    let named = |tag: &Reference| {
        let mut entry = descriptor.clone();
        entry["annotations"] = json!({
            "io.containerd.image.name": tag.to_string(),
            "org.opencontainers.image.ref.name": tag.tag(),
        });
        entry
    };
    tags.iter().map(named).collect()
}

fn manifest_item(image: &Image, tags: &BTreeSet<Reference>, layers: &[Value]) -> Value {
    let blob = |digest: &str| format!("{BLOBS}{}", digest.trim_start_matches("sha256:"));
    let sources: serde_json::Map<String, Value> =
        layers.iter().map(|layer| (layer["digest"].as_str().unwrap_or_default().to_owned(), layer.clone())).collect();
    let names: Vec<String> = tags.iter().map(Reference::familiar).collect();
    json!({
        "Config": blob(image.id.as_str()),
        "RepoTags": if names.is_empty() { Value::Null } else { json!(names) },
        "Layers": image.diff_ids.iter().map(|layer| blob(layer.as_str())).collect::<Vec<_>>(),
        "LayerSources": sources,
    })
}

/// The descriptors of an image's layers, lowest first.
fn archive_layers(store: &ImageStore, image: &Image) -> Result<Vec<Value>, SaveError> {
    let describe = |diff_id: &Digest| {
        let bytes = store.layer_tar_bytes(diff_id)?;
        Ok(json!({"mediaType": LAYER_TYPE, "digest": diff_id, "size": bytes}))
    };
    image.diff_ids.iter().map(describe).collect()
}

struct Archive<'w> {
    tar: ::tar::Builder<&'w mut dyn Write>,
    /// What was written.
    blobs: BTreeSet<Digest>,
}

impl Archive<'_> {
    /// Writes an image's blobs; gives its manifest's descriptor.
    fn image(&mut self, store: &ImageStore, image: &Image) -> Result<Value, SaveError> {
        let layers = archive_layers(store, image)?;
        for diff_id in &image.diff_ids {
            self.layer(store, diff_id)?;
            failpoint::reach("save.layer");
        }
        self.blob(&image.config_json)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": image.id, "size": image.config_json.len()},
            "layers": layers,
        })
        .to_string();
        let digest = self.blob(manifest.as_bytes())?;
        Ok(json!({"mediaType": MANIFEST_TYPE, "digest": digest, "size": manifest.len()}))
    }

    fn layer(&mut self, store: &ImageStore, diff_id: &Digest) -> Result<(), SaveError> {
        if !self.blobs.insert(diff_id.clone()) {
            return Ok(());
        }
        let bytes = store.layer_tar_bytes(diff_id)?;
        let mut stream = store.layer_tar(diff_id)?;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::BrokenPipe => SaveError::Write(source),
            _ => SaveError::Layer { diff_id: diff_id.clone(), source },
        };
        let mut exact = Exact { source: &mut stream, left: bytes };
        self.entry(&format!("{BLOBS}{}", diff_id.hex()), bytes, &mut exact).map_err(failed)?;
        // The end is asked for once more, where the stream's digest is verified.
        match stream.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(failed(io::Error::new(io::ErrorKind::InvalidData, "its stream is longer than recorded"))),
            Err(error) => Err(failed(error)),
        }
    }

    fn blob(&mut self, bytes: &[u8]) -> Result<Digest, SaveError> {
        let digest = digest_of(bytes);
        if self.blobs.insert(digest.clone()) {
            let name = format!("{BLOBS}{}", digest.hex());
            self.entry(&name, bytes.len() as u64, &mut &bytes[..]).map_err(SaveError::Write)?;
        }
        Ok(digest)
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<(), SaveError> {
        let text = value.to_string();
        self.entry(name, text.len() as u64, &mut text.as_bytes()).map_err(SaveError::Write)
    }

    fn entry(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut header = header(0o644, ::tar::EntryType::Regular);
        header.set_size(bytes);
        self.tar.append_data(&mut header, name, content)
    }

    fn folder(&mut self, name: &str) -> Result<(), SaveError> {
        let mut header = header(0o755, ::tar::EntryType::Directory);
        header.set_size(0);
        self.tar.append_data(&mut header, name, io::empty()).map_err(SaveError::Write)
    }
}

/// The same for everybody and at any time.
fn header(mode: u32, kind: ::tar::EntryType) -> ::tar::Header {
    let mut header = ::tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_entry_type(kind);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Gives exactly so many bytes: a shorter source is an error, since the archive's header has told the length.
struct Exact<R> {
    source: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.source.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its stream is shorter than recorded"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{archive, docker_files, file, layer, tar_of};

    fn store() -> (tempfile::TempDir, ImageStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        (folder, store)
    }

    fn save(store: &ImageStore, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut bytes = Vec::new();
        store.saving(&names).unwrap().write(&mut bytes).unwrap();
        bytes
    }

    fn names_in(archive: &[u8]) -> Vec<String> {
        let mut archive = ::tar::Archive::new(archive);
        let name = |entry: io::Result<::tar::Entry<'_, &[u8]>>| entry.unwrap().path().unwrap().display().to_string();
        archive.entries().unwrap().map(name).collect()
    }

    #[test]
    fn what_is_saved_is_loaded_as_the_same_image() {
        let (_folder, source) = store();
        let (base, own, other) =
            (tar_of(&[file("base", "1"), file("etc/x", "2")]), layer("own", "1"), layer("other", "1"));
        for (layers, tags) in
            [(vec![&base, &own], vec!["app:1", "app:2", "reg:5000/a/b:x"]), (vec![&base, &other, &base], vec!["other"])]
        {
            let layers: Vec<&[u8]> = layers.into_iter().map(Vec::as_slice).collect();
            source.load(&archive(&docker_files(&layers, &tags))[..], &mut |_| {}).unwrap();
        }
        let saved = save(&source, &["app:1", "app", "other:latest", "reg:5000/a/b:x"]);
        assert_eq!(saved, save(&source, &["other:latest", "reg:5000/a/b:x", "app"]));
        let blobs: Vec<_> = names_in(&saved).into_iter().filter(|name| name.len() > 60).collect();
        assert_eq!(blobs.len(), 3 + 2 + 2, "{blobs:?}");
        let (_folder, target) = store();
        target.load(&saved[..], &mut |_| {}).unwrap();
        for name in ["app:1", "app:2", "other", "reg:5000/a/b:x"] {
            let (from, to) = (source.resolve(name).unwrap(), target.resolve(name).unwrap());
            assert_eq!((from.id, from.config_json, from.diff_ids), (to.id, to.config_json, to.diff_ids));
        }
    }

    #[test]
    fn an_image_without_a_name_and_one_of_several_names() {
        let (_folder, source) = store();
        let own = layer("own", "1");
        let archive = archive(&docker_files(&[&own], &["app:1", "app:2"]));
        let id = source.load(&archive[..], &mut |_| {}).unwrap().remove(0).id;
        for (names, expected) in [(vec![id.as_str()], vec![]), (vec!["app:2"], vec!["app:2"])] {
            let (_folder, target) = store();
            let loaded = target.load(&save(&source, &names)[..], &mut |_| {}).unwrap().remove(0);
            assert_eq!((loaded.id, loaded.names), (id.clone(), expected.iter().map(ToString::to_string).collect()));
        }
        assert!(matches!(source.saving(&["missing".to_owned()]), Err(ResolveError::NotFound { .. })));
    }

    #[test]
    fn a_reader_that_goes_away_is_told() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_folder, source) = store();
        let own = layer("own", "1");
        source.load(&archive(&docker_files(&[&own], &["app"]))[..], &mut |_| {}).unwrap();
        assert!(matches!(source.saving(&["app".to_owned()]).unwrap().write(&mut Closed), Err(SaveError::Write(_))));
    }
}
