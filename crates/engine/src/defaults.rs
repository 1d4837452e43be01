//! What a container has that was given nothing else: the engine's own log driver, its options, and limits.
//!
//! Source: moby, daemon/logs.go `mergeAndVerifyLogConfig`, daemon/daemon_unix.go `mergeUlimits`.

use std::collections::BTreeMap;

use bollard::models::ResourcesUlimits;
use serde_json::{Map, Value, json};

use crate::log::{LogOptions, LogOptionsError};
use crate::spec;

/// The engine's defaults for containers, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerDefaults {
    /// The log driver's name.
    pub log_driver: String,
    /// Its options.
    log_options: BTreeMap<String, String>,
    /// Limits, each name once.
    limits: Vec<ResourcesUlimits>,
}

impl Default for ContainerDefaults {
    fn default() -> Self {
        Self { log_driver: "json-file".to_owned(), log_options: BTreeMap::new(), limits: Vec::new() }
    }
}

impl ContainerDefaults {
    /// Takes what the flags say. Shape: `options` are `NAME=VALUE`, `limits` as [`limit`] reads them; of a name that is given
    /// twice the last one counts.
    ///
    /// # Errors
    /// Options that the driver does not have or cannot use.
    pub fn new(driver: &str, options: &[String], limits: &[ResourcesUlimits]) -> Result<Self, LogOptionsError> {
        let pair = |option: &String| option.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let log_options: BTreeMap<_, _> = options.iter().filter_map(pair).collect();
        LogOptions::parse(driver, &log_options)?;
        let limits: BTreeMap<_, _> = limits.iter().map(|limit| (limit.name.clone(), limit.clone())).collect();
        Ok(Self { log_driver: driver.to_owned(), log_options, limits: limits.into_values().collect() })
    }

    /// Fills in what a container's `HostConfig` does not say itself. Options count only for the driver they were given for.
    pub fn fill(&self, host: &mut Map<String, Value>) {
        let log = host.entry("LogConfig").or_insert(Value::Null);
        let driver = log["Type"].as_str().filter(|driver| !driver.is_empty()).unwrap_or(&self.log_driver).to_owned();
        let mut options = log["Config"].as_object().cloned().unwrap_or_default();
        if driver == self.log_driver {
            for (name, value) in &self.log_options {
                options.entry(name).or_insert_with(|| json!(value));
            }
        }
        // What has another form is refused by whoever reads it with types.
        if matches!(log["Type"], Value::Null | Value::String(_)) {
            *log = json!({ "Type": driver, "Config": options });
        }
        if self.limits.is_empty() {
            return;
        }
        let mut limits = host.get("Ulimits").and_then(Value::as_array).cloned().unwrap_or_default();
        let given: Vec<String> = limits.iter().filter_map(|limit| limit["Name"].as_str().map(str::to_owned)).collect();
        let missing = |limit: &&ResourcesUlimits| {
            !given.iter().any(|name| limit.name.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name)))
        };
        limits.extend(self.limits.iter().filter(missing).map(|limit| json!(limit)));
        host.insert("Ulimits".into(), Value::Array(limits));
    }
}

/// Reads the name of a log driver that there is, for the command line.
///
/// # Errors
/// There is none.
pub fn log_driver(text: &str) -> Result<String, String> {
    let driver = if text.is_empty() { "json-file" } else { text };
    LogOptions::parse(driver, &BTreeMap::new()).map_err(|error| error.to_string())?;
    Ok(driver.to_owned())
}

/// Reads `NAME=SOFT[:HARD]`, -1 for none. Source: docker/go-units, `ParseUlimit`.
///
/// # Errors
/// dockerd's words for what is wrong.
pub fn limit(text: &str) -> Result<ResourcesUlimits, String> {
    let (name, values) = text.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    let number = |text: &str| text.parse::<i64>().map_err(|error| format!("invalid ulimit value {text:?}: {error}"));
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let limit = ResourcesUlimits { name: Some(name.to_owned()), soft: Some(number(soft)?), hard: Some(number(hard)?) };
    spec::check_limit(&limit).map_err(|error| error.to_string())?;
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(defaults: &ContainerDefaults, host: Value) -> Value {
        let Value::Object(mut host) = host else { panic!("{host}") };
        defaults.fill(&mut host);
        Value::Object(host)
    }

    #[test]
    fn a_containers_own_settings_win() {
        let limits = [limit("nofile=1024:2048").unwrap(), limit("core=0").unwrap()];
        let options = ["max-size=1m".to_owned(), "max-file=2".to_owned()];
        let defaults = ContainerDefaults::new("local", &options, &limits).unwrap();
        let host = filled(&defaults, json!({ "Ulimits": null }));
        assert_eq!(host["LogConfig"], json!({ "Type": "local", "Config": { "max-size": "1m", "max-file": "2" } }));
        let core = json!({ "Name": "core", "Soft": 0, "Hard": 0 });
        assert_eq!(host["Ulimits"], json!([core, { "Name": "nofile", "Soft": 1024, "Hard": 2048 }]));

        let own = json!({ "Name": "nofile", "Soft": 5, "Hard": 5 });
        let host = json!({ "LogConfig": { "Config": { "max-size": "2m" } }, "Ulimits": [own] });
        let host = filled(&defaults, host);
        assert_eq!(host["LogConfig"], json!({ "Type": "local", "Config": { "max-size": "2m", "max-file": "2" } }));
        assert_eq!(host["Ulimits"], json!([own, core]));

        let host = filled(&defaults, json!({ "LogConfig": { "Type": "json-file" } }));
        assert_eq!(host["LogConfig"], json!({ "Type": "json-file", "Config": {} }), "another driver's options");
    }

    #[test]
    fn without_any_a_container_is_as_it_was() {
        let host = filled(&ContainerDefaults::default(), json!({}));
        assert_eq!(host, json!({ "LogConfig": { "Type": "json-file", "Config": {} } }));
    }

    #[test]
    fn what_cannot_be_is_refused_in_dockerds_words() {
        for (text, expected) in [
            ("nofile", "invalid ulimit argument: nofile"),
            ("odd=1", "invalid ulimit type: odd"),
            ("nofile=x", "invalid ulimit value \"x\""),
            ("nofile=1:2:3", "invalid ulimit value \"2:3\""),
            ("nofile=2:1", "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
        ] {
            let error = limit(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(log_driver("nosuch").unwrap_err().contains("no log driver named 'nosuch'"));
        assert!(ContainerDefaults::new("local", &["labels=x".to_owned()], &[]).is_err());
    }
}
