//! Loading archives: what `docker save` writes, and OCI image layouts in a tar file.
//!
//! The archive is a stream and its directory may come last, so its files are first spooled into one temporary file. Then
//! its images are found, their layers converted, and all of them recorded at once.

mod docker;
mod oci;
mod spool;

use std::io::Read;

use proto::{Digest, ErrorKind};

use crate::compression::{Decompressed, Hashing, StreamRefusal};
use crate::config::{ConfigError, ParsedConfig};
use crate::content::FileError;
use crate::convert::LayerError;
use crate::failpoint;
use crate::reference::Reference;
use crate::store::{AddLayerError, Batch, ImageStore, StoreError};
use crate::tar::TarError;
use spool::Spool;
pub use spool::SpoolFault;

/// An archive that was not loaded; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is no tar file, damaged or cut off.
    #[error("the archive is not a valid tar file")]
    Archive(#[source] TarError),
    /// It passes a bound or is compressed in a way that is not supported.
    #[error("the archive is refused")]
    Refused(#[source] StreamRefusal),
    /// One of its files is refused.
    #[error("the archive's file {name:?} is refused")]
    File {
        /// Its name, cut to 200 characters.
        name: String,
        /// Why.
        #[source]
        fault: SpoolFault,
    },
    /// It has neither `manifest.json` nor `index.json`.
    #[error(
        "the archive has neither a manifest.json nor an index.json: it is no image archive (a root file system is imported, not loaded)"
    )]
    NoImages,
    /// One of its JSON files cannot be understood.
    #[error("the archive's {name} is malformed")]
    Document {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// One of its JSON files says what it must not.
    #[error("the archive's {name} is invalid: {reason}")]
    Invalid {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// A file is not what its digest says.
    #[error("{name} should have the digest {expected} and has {actual}")]
    DigestMismatch {
        /// Name in the archive, or the layer's number.
        name: String,
        /// As declared.
        expected: Digest,
        /// As found.
        actual: Digest,
    },
    /// No image in it is for this host.
    #[error("the archive has no image for linux/{wanted}, only for {found}")]
    NoPlatform {
        /// The architecture.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// An image's configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A layer is refused.
    #[error("cannot convert {name}")]
    Layer {
        /// Name in the archive.
        name: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The store's own files failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LoadError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Archive(_)
            | Self::NoImages
            | Self::Document { .. }
            | Self::Invalid { .. }
            | Self::DigestMismatch { .. } => ErrorKind::InvalidArgument,
            Self::Refused(StreamRefusal::Unsupported { .. }) => ErrorKind::NotImplemented,
            Self::Refused(_) => ErrorKind::ResourceExhausted,
            Self::File { fault, .. } => fault.kind(),
            Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::Config(error) => error.kind(),
            Self::Layer { source, .. } => source.kind(),
            Self::Store(error) => error.kind(),
        }
    }

    fn file(error: FileError) -> Self {
        Self::Store(error.into())
    }

    fn from_stream(error: std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<StreamRefusal>()) {
            Some(refusal) => Self::Refused(refusal.clone()),
            None => Self::Archive(TarError::Read(error)),
        }
    }
}

/// How far a load is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadEvent {
    /// Bytes of the archive that were read, uncompressed.
    Received {
        /// So far.
        bytes: u64,
    },
    /// A layer that the store has already.
    LayerExists {
        /// Which.
        diff_id: Digest,
    },
    /// A layer is being converted.
    LayerProgress {
        /// Which.
        diff_id: Digest,
        /// Bytes of it that were read, as stored in the archive.
        bytes: u64,
        /// Bytes of it there are, as stored in the archive.
        total_bytes: u64,
    },
    /// A layer is converted and on the disk.
    LayerDone {
        /// Which.
        diff_id: Digest,
    },
    /// Another image lost its name to one of the archive's.
    NameMoved {
        /// The name, short.
        name: String,
        /// The image that had it.
        from: Digest,
    },
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its names in the archive, short, with tags.
    pub names: Vec<String>,
}

/// An image as found in an archive.
struct FoundImage {
    config_name: String,
    /// As the manifest declares it.
    config_digest: Option<Digest>,
    layers: Vec<FoundLayer>,
    names: Vec<Reference>,
}

struct FoundLayer {
    name: String,
    /// Of the blob, as the manifest declares it.
    digest: Option<Digest>,
    /// Length and compression, as the manifest declares them.
    declared: Option<oci::DeclaredBlob>,
}

impl ImageStore {
    /// Loads the images of an archive. Shape: `archive` is a tar stream, plain or gzip or zstd; gives the images in the
    /// archive's order. When: waits for the whole stream; `progress` is called in between. All images are added, or none.
    ///
    /// # Errors
    /// As the variants of [`LoadError`] say.
    ///
    /// Source: Docker image specification v1.2, OCI image-spec image-layout.md.
    pub fn load(&self, archive: impl Read, progress: &mut dyn FnMut(LoadEvent)) -> Result<Vec<LoadedImage>, LoadError> {
        let (stream, _) =
            Decompressed::new(archive, &self.limits, self.limits.archive_bytes).map_err(LoadError::from_stream)?;
        let spool = Spool::fill(stream, self.content.anonymous().map_err(LoadError::file)?, progress)?;
        failpoint::reach("load.spooled");
        let found = match (spool.contains(docker::MANIFEST), spool.contains(oci::INDEX)) {
            // Newer Docker writes both, and its manifest.json lists exactly what was saved. Containerd writes both with the
            // names in index.json only.
            (true, true) => {
                let images = docker::find_images(&spool)?;
                let named = images.iter().any(|image| !image.names.is_empty());
                if named { images } else { oci::find_images(&spool)? }
            }
            (true, false) => docker::find_images(&spool)?,
            (false, true) => oci::find_images(&spool)?,
            (false, false) => return Err(LoadError::NoImages),
        };
        failpoint::reach("load.found");
        let mut batch = Batch::new(self);
        let mut loaded = Vec::new();
        for image in &found {
            let config_json = read_config(&spool, image)?;
            let parsed = crate::config::parse(config_json.as_bytes())?;
            add_layers(&mut batch, &spool, image, &parsed, progress)?;
            batch.add_image(config_json, &parsed, &image.names);
            failpoint::reach("load.image");
            loaded.push(LoadedImage { id: parsed.id, names: image.names.iter().map(Reference::familiar).collect() });
        }
        for moved in batch.commit()? {
            progress(LoadEvent::NameMoved { name: moved.name.familiar(), from: moved.from });
        }
        Ok(loaded)
    }
}

fn read_config(spool: &Spool, image: &FoundImage) -> Result<String, LoadError> {
    let bytes = spool.read_json(&image.config_name)?;
    check_digest(&image.config_name, image.config_digest.as_ref(), &crate::compression::digest_of(&bytes))?;
    let invalid = LoadError::Invalid { name: image.config_name.clone(), reason: "it is not UTF-8" };
    String::from_utf8(bytes).map_err(|_| invalid)
}

fn add_layers(
    batch: &mut Batch<'_>,
    spool: &Spool,
    image: &FoundImage,
    parsed: &ParsedConfig,
    progress: &mut dyn FnMut(LoadEvent),
) -> Result<(), LoadError> {
    if image.layers.len() != parsed.diff_ids.len() {
        let reason = "it lists another number of layers than the image configuration";
        return Err(LoadError::Invalid { name: "manifest".to_owned(), reason });
    }
    for (layer, diff_id) in image.layers.iter().zip(&parsed.diff_ids) {
        if batch.has_layer(diff_id) {
            progress(LoadEvent::LayerExists { diff_id: diff_id.clone() });
            continue;
        }
        add_layer(batch, spool, layer, diff_id, progress)?;
        progress(LoadEvent::LayerDone { diff_id: diff_id.clone() });
    }
    Ok(())
}

fn add_layer(
    batch: &mut Batch<'_>,
    spool: &Spool,
    layer: &FoundLayer,
    diff_id: &Digest,
    progress: &mut dyn FnMut(LoadEvent),
) -> Result<(), LoadError> {
    let file = spool.open(&layer.name)?;
    let total_bytes = file.len();
    if let Some(declared) = &layer.declared {
        declared.check(&layer.name, &file)?;
    }
    let report = |bytes| progress(LoadEvent::LayerProgress { diff_id: diff_id.clone(), bytes, total_bytes });
    let source = Reporting { source: file, bytes: 0, reported: 0, report };
    let refused = |error| match error {
        AddLayerError::Layer(source) => LoadError::Layer { name: layer.name.clone(), source },
        AddLayerError::Store(error) => error.into(),
    };
    let converted = match &layer.digest {
        // Nobody says what the stored bytes should be, so nobody need hash them: their content is checked below.
        None => batch.add_layer(source).map_err(refused)?,
        Some(expected) => {
            let mut blob = Hashing::new(source);
            let converted = batch.add_layer(&mut blob).map_err(refused)?;
            let (blob_digest, _) = blob.finish().map_err(LoadError::from_stream)?;
            check_digest(&layer.name, Some(expected), &blob_digest)?;
            converted
        }
    };
    check_digest(&format!("the uncompressed {}", layer.name), Some(diff_id), &converted.diff_id)
}

fn check_digest(name: &str, expected: Option<&Digest>, actual: &Digest) -> Result<(), LoadError> {
    match expected {
        Some(expected) if expected != actual => {
            Err(LoadError::DigestMismatch { name: name.to_owned(), expected: expected.clone(), actual: actual.clone() })
        }
        _ => Ok(()),
    }
}

/// Bytes between two reports.
const REPORT_BYTES: u64 = 4 << 20;

/// Says now and then how much was read through it.
struct Reporting<R, F> {
    source: R,
    bytes: u64,
    reported: u64,
    report: F,
}

impl<R: Read, F: FnMut(u64)> Read for Reporting<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.bytes += count as u64;
        let ended = count == 0 && self.bytes > self.reported;
        if ended || self.bytes - self.reported >= REPORT_BYTES {
            self.reported = self.bytes;
            (self.report)(self.bytes);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
