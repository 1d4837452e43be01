//! Where a stage has come to: its image so far, and the configuration that the next instruction changes.

use bollard::models::ContainerConfig;
use image::{Image, ImageHold};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// What containers find programs by when the image does not say. Source: moby, pkg/system, `DefaultPathEnv`.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A stage under way.
pub struct State {
    /// The image so far.
    pub image: Image,
    /// It began from nothing and still is nothing.
    pub is_scratch: bool,
    /// For containers of the image to come.
    pub config: ContainerConfig,
    /// Who MAINTAINER names.
    pub maintainer: String,
    /// CMD was given in this stage, so that an ENTRYPOINT leaves it.
    pub cmd_set: bool,
    /// Keeps the image while the stage needs it.
    _hold: ImageHold,
}

impl State {
    /// At the begin of a stage.
    ///
    /// # Errors
    /// 500 when the image's configuration cannot be read.
    pub fn begin(image: Image, hold: ImageHold, is_scratch: bool) -> ApiResult<Self> {
        let mut config = config_of(&image)?;
        let environment = config.env.get_or_insert_default();
        if !environment.iter().any(|entry| entry.starts_with("PATH=")) {
            environment.push(DEFAULT_PATH.to_owned());
        }
        Ok(Self { image, is_scratch, config, maintainer: String::new(), cmd_set: false, _hold: hold })
    }

    /// A step has made an image.
    pub fn advance(&mut self, image: Image, hold: ImageHold) {
        self.config.image = Some(image.id.to_string());
        self.image = image;
        self.is_scratch = false;
        self._hold = hold;
    }

    /// The id as it is shown; empty for nothing.
    #[must_use]
    pub fn short_id(&self) -> &str {
        if self.is_scratch { "" } else { &self.image.id.hex()[..12] }
    }

    /// What runs a line.
    #[must_use]
    pub fn shell(&self) -> Vec<String> {
        let given = self.config.shell.clone().filter(|shell| !shell.is_empty());
        given.unwrap_or_else(|| DEFAULT_SHELL.map(str::to_owned).into())
    }

    /// The environment so far.
    #[must_use]
    pub fn environment(&self) -> &[String] {
        self.config.env.as_deref().unwrap_or_default()
    }

    /// The configuration that the cache knows a step by: the command tells what was done. Shape: `what` is `words` joined to
    /// the mark that nothing was run.
    #[must_use]
    pub fn noted(&self, words: &[&str]) -> ContainerConfig {
        let mut cmd = self.shell();
        cmd.extend(words.iter().map(ToString::to_string));
        ContainerConfig { cmd: Some(cmd), ..self.config.clone() }
    }
}

/// The configuration that an image gives its containers.
fn config_of(image: &Image) -> ApiResult<ContainerConfig> {
    let failed = |error: serde_json::Error| ApiError::caused("cannot read the image's configuration", &error);
    let whole: Value = serde_json::from_slice(&image.config_json).map_err(failed)?;
    let Value::Object(mut config) = whole["config"].clone() else { return Ok(ContainerConfig::default()) };
    config.retain(|_, value| !value.is_null());
    let mut config = ContainerConfig::deserialize(Value::Object(config)).map_err(failed)?;
    config.image = Some(image.id.to_string());
    config.hostname = None;
    config.domainname = None;
    (config.open_stdin, config.stdin_once, config.tty) = (None, None, None);
    Ok(config)
}
