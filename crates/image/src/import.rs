//! Making an image from the tar stream of a root file system.

use std::io::Read;
use std::time::SystemTime;

use proto::{Digest, ErrorKind};
use serde_json::{Map, Value, json};

use crate::changes::{self, ChangeError};
use crate::config::{self, ConfigError, host_architecture};
use crate::convert::LayerError;
use crate::failpoint;
use crate::reference::Reference;
use crate::store::{AddLayerError, Batch, ImageStore, StoreError};
use crate::timestamp::Timestamp;

/// How the image is to be.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Its name, if it gets one.
    pub reference: Option<Reference>,
    /// Dockerfile instructions for its configuration: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME, WORKDIR.
    pub changes: Vec<String>,
    /// The history's remark.
    pub message: String,
    /// In Go's words; `None` is the host's.
    pub architecture: Option<String>,
    /// When it was made.
    pub created: SystemTime,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            reference: None,
            changes: Vec::new(),
            message: "Imported from -".to_owned(),
            architecture: None,
            created: SystemTime::now(),
        }
    }
}

/// A root file system that was not imported; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A change is no instruction, or none that fits.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The name has a digest, which is not ours to give.
    #[error("cannot import digest reference")]
    Digest,
    /// There is nothing in it.
    #[error("the root file system is empty")]
    Empty,
    /// The stream is refused.
    #[error("cannot import the root file system")]
    Layer(#[source] LayerError),
    /// The configuration that came out is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store's own files failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Change(_) | Self::Digest | Self::Empty => ErrorKind::InvalidArgument,
            Self::Layer(error) => error.kind(),
            Self::Config(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

impl ImageStore {
    /// Makes an image with one layer. Shape: `rootfs_tar` is a tar stream, plain or gzip or zstd; gives the image's id, the
    /// digest of its configuration. When: waits for the whole stream.
    ///
    /// # Errors
    /// As the variants of [`ImportError`] say.
    ///
    /// Source: Docker Engine API, "Create an image", `fromSrc=-`.
    pub fn import(&self, rootfs_tar: impl Read, options: &ImportOptions) -> Result<Digest, ImportError> {
        if options.reference.as_ref().is_some_and(|name| name.digest().is_some()) {
            return Err(ImportError::Digest);
        }
        let run_config = changes::apply(&options.changes)?;
        let mut batch = Batch::new(self);
        let converted = batch.add_layer(rootfs_tar).map_err(|error| match error {
            AddLayerError::Layer(error) => ImportError::Layer(error),
            AddLayerError::Store(error) => ImportError::Store(error),
        })?;
        if converted.entries == 0 {
            return Err(ImportError::Empty);
        }
        failpoint::reach("import.converted");
        let config_json = configuration(options, &run_config, &converted.diff_id);
        let parsed = config::parse(config_json.as_bytes())?;
        let names: Vec<Reference> = options.reference.iter().cloned().collect();
        batch.add_image(config_json, &parsed, &names);
        batch.commit()?;
        Ok(parsed.id)
    }
}

fn configuration(options: &ImportOptions, run_config: &Map<String, Value>, diff_id: &Digest) -> String {
    let created = Timestamp::from_system_time(options.created).to_rfc3339();
    json!({
        "architecture": options.architecture.as_deref().unwrap_or(host_architecture()),
        "config": run_config,
        "created": created,
        "history": [{ "created": created, "comment": options.message }],
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string()
}
