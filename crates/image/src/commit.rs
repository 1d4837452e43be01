//! Making an image from a container: its image with one more layer, and the configuration that the container had.

use std::io::Read;
use std::time::SystemTime;

use proto::{Digest, ErrorKind};
use serde_json::{Map, Value, json};

use crate::changes::{self, ChangeError};
use crate::config::{self, ConfigError, Image};
use crate::convert::LayerError;
use crate::failpoint;
use crate::reference::Reference;
use crate::store::{AddLayerError, Batch, ImageStore, StoreError};
use crate::timestamp::Timestamp;

/// What of a container's configuration an image has. Source: Docker image specification 1.2.
const KEPT: [&str; 13] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "StopTimeout",
    "Healthcheck",
    "OnBuild",
    "Shell",
];

/// How the image is to be.
#[derive(Debug, Clone)]
pub struct CommitOptions {
    /// Its name, if it gets one.
    pub reference: Option<Reference>,
    /// Docker's `Config`: that of the container, with whatever the client wants otherwise.
    pub config: Value,
    /// Dockerfile instructions for it, as for [`crate::ImportOptions`].
    pub changes: Vec<String>,
    /// Who made it.
    pub author: String,
    /// The history's remark.
    pub comment: String,
    /// What made the layer, for the history.
    pub created_by: String,
    /// When it was made.
    pub created: SystemTime,
    /// The container's id, and Docker's `Config` of it, which clients are shown of an image that was committed.
    pub container: (String, Value),
}

/// A container that was not committed; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A change is no instruction, or none that fits.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The name has a digest, which is not ours to give.
    #[error("refusing to create a tag with a digest reference")]
    Digest,
    /// The image's own configuration is no JSON object.
    #[error("the container's image has no usable configuration")]
    Base,
    /// A layer of the container's image is not there any more.
    #[error("layer {diff_id} of the container's image is missing or damaged")]
    MissingLayer {
        /// Which.
        diff_id: Digest,
    },
    /// The stream of the changes is refused.
    #[error("cannot take the container's changes")]
    Layer(#[source] LayerError),
    /// The configuration that came out is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store's own files failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CommitError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Change(_) | Self::Digest => ErrorKind::InvalidArgument,
            Self::Base => ErrorKind::Internal,
            Self::MissingLayer { .. } => ErrorKind::NotFound,
            Self::Layer(error) => error.kind(),
            Self::Config(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

impl ImageStore {
    /// Makes an image of another one and one layer more. Shape: `changes_tar` is the layer's tar stream; gives the image's id.
    /// When: waits for the whole stream.
    ///
    /// # Errors
    /// As the variants of [`CommitError`] say.
    ///
    /// Source: Docker Engine API, "Create a new image from a container".
    pub fn commit(&self, base: &Image, changes_tar: impl Read, options: &CommitOptions) -> Result<Digest, CommitError> {
        if options.reference.as_ref().is_some_and(|name| name.digest().is_some()) {
            return Err(CommitError::Digest);
        }
        let run_config = run_config(options)?;
        let mut batch = Batch::new(self);
        for diff_id in &base.diff_ids {
            if !batch.has_layer(diff_id) {
                return Err(CommitError::MissingLayer { diff_id: diff_id.clone() });
            }
        }
        let converted = batch.add_layer(changes_tar).map_err(|error| match error {
            AddLayerError::Layer(error) => CommitError::Layer(error),
            AddLayerError::Store(error) => CommitError::Store(error),
        })?;
        let config_json = configuration(base, options, run_config, &converted.diff_id)?;
        let parsed = config::parse(config_json.as_bytes())?;
        let names: Vec<Reference> = options.reference.iter().cloned().collect();
        batch.add_step(config_json, &parsed, &names, Some(base.id.clone()));
        failpoint::reach("container-commit.converted");
        batch.commit()?;
        failpoint::reach("container-commit.committed");
        Ok(parsed.id)
    }
}

fn run_config(options: &CommitOptions) -> Result<Map<String, Value>, ChangeError> {
    let given = options.config.as_object().cloned().unwrap_or_default();
    let mut config: Map<String, Value> =
        given.into_iter().filter(|(name, value)| KEPT.contains(&name.as_str()) && !value.is_null()).collect();
    changes::apply_to(&mut config, &options.changes)?;
    Ok(config)
}

fn configuration(
    base: &Image,
    options: &CommitOptions,
    run_config: Map<String, Value>,
    diff_id: &Digest,
) -> Result<String, CommitError> {
    let mut image: Value = serde_json::from_slice(&base.config_json).map_err(|_| CommitError::Base)?;
    let image = image.as_object_mut().ok_or(CommitError::Base)?;
    let created = Timestamp::from_system_time(options.created).to_rfc3339();
    let mut step = json!({ "created": created, "created_by": options.created_by });
    for (name, text) in [("author", &options.author), ("comment", &options.comment)] {
        if !text.is_empty() {
            step[name] = text.as_str().into();
        }
    }
    let mut history = image.remove("history").unwrap_or_default().as_array().cloned().unwrap_or_default();
    history.push(step);
    let diff_ids: Vec<&Digest> = base.diff_ids.iter().chain([diff_id]).collect();
    image.insert("history".into(), history.into());
    image.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    image.insert("config".into(), run_config.into());
    image.insert("created".into(), created.into());
    image.remove("author");
    if !options.author.is_empty() {
        image.insert("author".into(), options.author.as_str().into());
    }
    // In the place of what Docker noted of the image below.
    let (container, container_config) = &options.container;
    image.insert("container".into(), container.as_str().into());
    image.insert("container_config".into(), container_config.clone());
    Ok(Value::Object(std::mem::take(image)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_containers_with_the_changes() {
        let options = CommitOptions {
            reference: None,
            config: json!({
                "Hostname": "abc", "Tty": true, "User": "5", "Env": ["A=1", "B=2"], "Cmd": ["sh"], "Labels": null,
                "Entrypoint": null,
            }),
            changes: vec!["ENV A=9".into(), "LABEL x=y".into(), "CMD [\"true\"]".into()],
            author: "me".into(),
            comment: String::new(),
            created_by: "sh".into(),
            created: SystemTime::UNIX_EPOCH,
            container: ("abc".into(), json!({ "Tty": true })),
        };
        let config = Value::Object(run_config(&options).unwrap());
        let expected = json!({"User": "5", "Env": ["A=9", "B=2"], "Cmd": ["true"], "Labels": {"x": "y"}});
        assert_eq!(config, expected);
        let bad = CommitOptions { changes: vec!["RUN x".into()], ..options };
        assert_eq!(CommitError::from(run_config(&bad).unwrap_err()).kind(), ErrorKind::InvalidArgument);
    }
}
