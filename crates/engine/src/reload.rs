//! SIGHUP: a running engine takes over what may change of a changed configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde_json::json;

use crate::config::{self, Loaded};
use crate::engine::Engine;
use crate::error::chain;
use crate::notify;
use crate::verbosity::Verbosity;

/// Keys that take effect without a restart.
const CHANGEABLE: [&str; 5] = ["debug", "log-level", "labels", "registry-mirrors", "insecure-registries"];

/// What a reload starts from.
pub struct Reloader {
    /// The command line, the program's name first.
    pub args: Vec<OsString>,
    /// The configuration that is in force.
    pub current: Loaded,
    /// The log's level.
    pub verbosity: Verbosity,
}

impl Reloader {
    /// Reads the configuration again. One that cannot be used is told in the log and changes nothing; a changed key that
    /// needs a restart is told, too. In the end there is an event `daemon reload`, as dockerd has it.
    pub fn reload(&mut self, engine: &Engine) {
        notify::tell(notify::State::Reloading);
        match config::load(&self.args) {
            Ok(loaded) => self.take(engine, loaded),
            Err(error) => tracing::error!("the configuration is not reloaded: {}", one_line(&error.to_string())),
        }
        notify::tell(notify::State::Ready);
    }

    fn take(&mut self, engine: &Engine, loaded: Loaded) {
        let flags = &loaded.flags;
        let (mirrors, insecure) = (flags.registry_mirrors.clone(), flags.insecure_registries.clone());
        if let Err(error) = engine.registries.set_lists(mirrors, insecure) {
            return tracing::error!("the configuration is not reloaded: {}", chain(&error));
        }
        let fixed: Vec<&str> =
            loaded.changed(&self.current).into_iter().filter(|key| !CHANGEABLE.contains(key)).collect();
        if !fixed.is_empty() {
            tracing::warn!("changed, but in force only after a restart: {}", fixed.join(", "));
        }
        self.verbosity.follow(flags);
        engine.change(flags.changeable());
        tracing::info!(file = ?loaded.file, "the configuration is reloaded");
        engine.events.publish("daemon", "reload", &engine.id, attributes(engine));
        // What needs a restart stays in force as it was, so that the next reload tells it again.
        self.current.flags = loaded.flags;
    }
}

/// Source: moby `daemon/reload.go`.
fn attributes(engine: &Engine) -> BTreeMap<String, String> {
    let (now, registries) = (engine.changeable(), engine.registries.settings());
    let names = rustix::system::uname();
    [
        ("name", names.nodename().to_string_lossy().into_owned()),
        ("debug", now.debug.to_string()),
        ("labels", json!(now.labels).to_string()),
        ("registry-mirrors", json!(registries.mirrors).to_string()),
        ("insecure-registries", json!(registries.insecure).to_string()),
        ("max-concurrent-downloads", registries.transfers.to_string()),
        ("default-runtime", engine.settings.default_isolation.as_str().to_owned()),
        ("live-restore", "true".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
