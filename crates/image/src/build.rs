//! What a build adds to the store: one image a step, each remembering which it was made from. They are the build cache.

use std::io::Read;
use std::time::SystemTime;

use proto::Digest;
use serde_json::{Map, Value, json};

use crate::commit::CommitError;
use crate::config::{self, Image, host_architecture};
use crate::failpoint;
use crate::nothing;
use crate::store::{AddLayerError, Batch, ImageStore};
use crate::timestamp::Timestamp;

/// One step of a build.
#[derive(Debug, Clone)]
pub struct BuildStep {
    /// Docker's `Config` for containers of the image.
    pub config: Value,
    /// Docker's `Config` of the container that the step was made in; the cache compares it.
    pub container_config: Value,
    /// That container, if there was one.
    pub container: Option<String>,
    /// Who made it.
    pub author: String,
    /// When it was made.
    pub created: SystemTime,
}

impl ImageStore {
    /// The image that `FROM scratch` begins with.
    ///
    /// # Errors
    /// As the variants of [`CommitError`] say.
    pub fn nothing(&self) -> Result<Image, CommitError> {
        if let Some(image) = self.image(nothing::image_id()) {
            return Ok(image);
        }
        let mut batch = Batch::new(self);
        if !batch.has_layer(nothing::layer()) {
            add(&mut batch, &nothing::EMPTY_TAR[..])?;
        }
        let config = nothing::config_json();
        let parsed = config::parse_own(config.as_bytes())?;
        batch.add_image(config, &parsed, &[]);
        batch.commit()?;
        self.image(&parsed.id).ok_or(CommitError::Base)
    }

    /// Adds what a step made of an image: a layer of its changes, if there are any, and a configuration. Shape:
    /// `changes_tar` is the layer's stream, `None` for a step that changes no files; gives the image's id. When: waits for
    /// the whole stream.
    ///
    /// # Errors
    /// As the variants of [`CommitError`] say.
    ///
    /// Source: moby, image, `NewChildImage`.
    pub fn add_step(
        &self,
        base: &Image,
        changes_tar: Option<impl Read>,
        step: &BuildStep,
    ) -> Result<Digest, CommitError> {
        let mut batch = Batch::new(self);
        for diff_id in &base.diff_ids {
            if !batch.has_layer(diff_id) {
                return Err(CommitError::MissingLayer { diff_id: diff_id.clone() });
            }
        }
        let layer = match changes_tar {
            None => None,
            Some(tar) => {
                let staged = self.stage_layer(tar).map_err(refused)?;
                let (diff_id, has_changes) = (staged.converted.diff_id.clone(), staged.converted.entries > 0);
                if has_changes {
                    batch.adopt(staged);
                }
                has_changes.then_some(diff_id)
            }
        };
        let config_json = configuration(base, step, layer.as_ref())?;
        let parsed = config::parse_own(config_json.as_bytes())?;
        batch.add_step(config_json, &parsed, &[], Some(base.id.clone()));
        failpoint::reach("build-step.converted");
        batch.commit()?;
        Ok(parsed.id)
    }

    /// The newest image that a step with the same configuration made from `parent`. Shape: `same` compares the
    /// `container_config` of one.
    pub fn find_step(&self, parent: &Digest, same: impl Fn(&Value) -> bool) -> Option<Image> {
        let children = self.children(parent);
        let matching = children.into_iter().filter(|image| {
            let config: Option<Value> = serde_json::from_slice(&image.config_json).ok();
            config.is_some_and(|config| same(&config["container_config"]))
        });
        matching.max_by_key(Image::created_at)
    }
}

fn add(batch: &mut Batch<'_>, tar: impl Read) -> Result<(), CommitError> {
    batch.add_layer(tar).map(drop).map_err(refused)
}

fn refused(error: AddLayerError) -> CommitError {
    match error {
        AddLayerError::Layer(error) => CommitError::Layer(error),
        AddLayerError::Store(error) => CommitError::Store(error),
    }
}

/// The base's configuration with the step's, and the step in its history.
fn configuration(base: &Image, step: &BuildStep, layer: Option<&Digest>) -> Result<String, CommitError> {
    let base_config: Value = serde_json::from_slice(&base.config_json).map_err(|_| CommitError::Base)?;
    let field = |name: &str| base_config.get(name).filter(|value| !value.is_null()).cloned();
    let created = Timestamp::from_system_time(step.created).to_rfc3339();
    let words = step.container_config["Cmd"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut history_entry = json!({ "created": created, "created_by": words.collect::<Vec<_>>().join(" ") });
    let mut image = Map::new();
    if !step.author.is_empty() {
        history_entry["author"] = step.author.as_str().into();
        image.insert("author".into(), step.author.as_str().into());
    }
    if layer.is_none() {
        history_entry["empty_layer"] = true.into();
    }
    let mut history = field("history").and_then(|history| history.as_array().cloned()).unwrap_or_default();
    history.push(history_entry);
    let diff_ids: Vec<&Digest> = base.diff_ids.iter().chain(layer).collect();
    image.insert("architecture".into(), field("architecture").unwrap_or_else(|| host_architecture().into()));
    for name in ["variant", "os.version", "os.features"] {
        image.extend(field(name).map(|value| (name.to_owned(), value)));
    }
    image.insert("os".into(), "linux".into());
    image.insert("created".into(), created.into());
    image.insert("config".into(), step.config.clone());
    if let Some(container) = &step.container {
        image.insert("container".into(), container.as_str().into());
    }
    image.insert("container_config".into(), step.container_config.clone());
    image.insert("history".into(), history.into());
    image.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    Ok(Value::Object(image).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{file, tar_of};

    fn step(command: &str) -> BuildStep {
        BuildStep {
            config: json!({ "Env": ["A=1"] }),
            container_config: json!({ "Cmd": [command] }),
            container: None,
            author: String::new(),
            created: SystemTime::now(),
        }
    }

    #[test]
    fn steps_are_found_again_by_what_they_did() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        let nothing = store.nothing().unwrap();
        assert_eq!((store.nothing().unwrap().id, store.list().len()), (nothing.id.clone(), 0));
        assert_eq!(store.layer_files(&nothing).unwrap().len(), 1, "it can be mounted");
        let label = store.add_step(&nothing, None::<&[u8]>, &step("label")).unwrap();
        let label = store.image(&label).unwrap();
        assert_eq!(label.diff_ids.len(), 0);
        let tar = tar_of(&[file("a", "b")]);
        let copied = store.add_step(&label, Some(&tar[..]), &step("copy")).unwrap();
        let unchanged = store.add_step(&label, Some(&nothing::EMPTY_TAR[..]), &step("workdir")).unwrap();
        assert_eq!(
            (store.image(&copied).unwrap().diff_ids.len(), store.image(&unchanged).unwrap().diff_ids.len()),
            (1, 0)
        );
        let find =
            |command: &str| store.find_step(&label.id, |config| config["Cmd"][0] == command).map(|image| image.id);
        assert_eq!((find("copy"), find("label")), (Some(copied.clone()), None));
        assert!(store.list().iter().any(|image| image.id == label.id && image.has_children));
        // Steps go with the last image made of them, and can be found after the store was opened again.
        assert!(store.remove(label.id.as_str(), true, &|_| Vec::new()).is_err());
        drop(store);
        let store = ImageStore::open(folder.path()).unwrap();
        store.remove(unchanged.as_str(), false, &|_| Vec::new()).unwrap();
        assert!(store.image(&label.id).is_some());
        store.remove(copied.as_str(), false, &|_| Vec::new()).unwrap();
        assert!(store.image(&label.id).is_none() && store.image(&nothing.id).is_none());
    }
}
