//! What a client asks of a new container: read, decided, checked.

mod network;

use bollard::models::{ContainerConfig, HostConfig, RestartPolicyNameEnum};
use proto::Isolation;
use serde_json::{Map, Value, json};

use super::kill;
use super::restart_policy;
use crate::body;
use crate::defaults::ContainerDefaults;
use crate::error::{ApiError, ApiResult};
use crate::network::endpoint::Endpoints;

/// The body of `POST /containers/create`, taken apart. Shape: `config` and `host` are objects as the client sent them;
/// in `host` the isolation is decided and the defaults that matter are filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Requested {
    /// Docker's `Config`.
    pub config: Value,
    /// Docker's `HostConfig`.
    pub host: Value,
    /// The wall.
    pub isolation: Isolation,
    /// Its networks.
    pub endpoints: Endpoints,
    /// What the client should know.
    pub warnings: Vec<String>,
}

impl Requested {
    /// Reads and decides.
    ///
    /// # Errors
    /// 400 for what can never be; 501 for what this version does not do.
    pub fn read(body: Value, default: Isolation, defaults: &ContainerDefaults) -> ApiResult<Self> {
        let Value::Object(mut config) = body else {
            return Err(ApiError::invalid("config cannot be empty in order to create a container"));
        };
        let host = config.remove("HostConfig").filter(|value| !value.is_null()).unwrap_or_else(|| json!({}));
        let networking = config.remove("NetworkingConfig").unwrap_or_default();
        if config.is_empty() {
            return Err(ApiError::invalid("config cannot be empty in order to create a container"));
        }
        let Value::Object(mut host) = host else {
            return Err(ApiError::invalid("invalid JSON: HostConfig is no object"));
        };
        let isolation = choose_isolation(&host, default)?;
        host.insert("Isolation".into(), json!(isolation.as_str()));
        fill_defaults(&mut host);
        defaults.fill(&mut host);
        restart_policy::validate(&host["RestartPolicy"])?;
        let mut requested = Self {
            config: Value::Object(config),
            host: Value::Object(host),
            isolation,
            endpoints: Endpoints::default(),
            warnings: Vec::new(),
        };
        check_mount_types(&requested.host)?;
        let typed = requested.typed_host()?;
        check(&typed)?;
        if let Some(signal) = requested.config["StopSignal"].as_str().filter(|signal| !signal.is_empty()) {
            kill::parse_signal(signal)?;
        }
        let (endpoints, warnings) = network::decide(&requested, &typed, networking)?;
        requested.endpoints = endpoints;
        requested.warnings = warnings;
        Ok(requested)
    }

    /// `config` with types.
    ///
    /// # Errors
    /// 400 when it has another form.
    pub fn typed_config(&self) -> ApiResult<ContainerConfig> {
        body::typed(&self.config)
    }

    /// `host` with types.
    ///
    /// # Errors
    /// 400 when it has another form.
    pub fn typed_host(&self) -> ApiResult<HostConfig> {
        body::typed(&self.host)
    }

    /// Puts the typed configuration, with the image's merged in, over what the client sent.
    ///
    /// # Errors
    /// 500 when it cannot be written as JSON.
    pub fn set_config(&mut self, typed: &ContainerConfig) -> ApiResult<()> {
        let merged =
            serde_json::to_value(typed).map_err(|error| ApiError::caused("cannot write the configuration", &error))?;
        if let (Value::Object(config), Value::Object(merged)) = (&mut self.config, merged) {
            // An entrypoint that was emptied is not in the typed form.
            for name in ["Entrypoint", "Cmd"] {
                config.insert(name.into(), Value::Null);
            }
            config.extend(merged);
        }
        Ok(())
    }
}

/// `--isolation` decides; `--runtime process` and `--runtime hyperv` say the same for clients that know no isolation.
fn choose_isolation(host: &Map<String, Value>, default: Isolation) -> ApiResult<Isolation> {
    let word = |name: &str| host.get(name).and_then(Value::as_str).unwrap_or_default();
    let by_runtime: Option<Isolation> = word("Runtime").parse().ok();
    let isolation = Isolation::choose(word("Isolation"), by_runtime.unwrap_or(default))
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    if by_runtime.is_some_and(|by_runtime| by_runtime != isolation) {
        return Err(ApiError::invalid(format!(
            "--isolation {isolation} and --runtime {} contradict each other",
            word("Runtime")
        )));
    }
    Ok(isolation)
}

/// The defaults that other parts rely on; the rest is filled in for show only.
fn fill_defaults(host: &mut Map<String, Value>) {
    let empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(_) => false,
    };
    let defaults = [
        ("NetworkMode", json!("default")),
        ("IpcMode", json!("private")),
        ("CgroupnsMode", json!("private")),
        ("ShmSize", json!(64 << 20)),
        ("Runtime", json!(RUNTIME)),
    ];
    for (name, value) in defaults {
        if empty(host.get(name)) {
            host.insert(name.into(), value);
        }
    }
    // As dockerd keeps it: an update that says nothing of swap must fit it.
    if let Some(memory) = host.get("Memory").and_then(Value::as_i64).filter(|memory| *memory > 0)
        && empty(host.get("MemorySwap"))
    {
        host.insert("MemorySwap".into(), json!(memory.saturating_mul(2)));
    }
    // How clients say "as it is".
    for (name, nothing) in [("MemorySwappiness", -1), ("PidsLimit", 0)] {
        if host.get(name).and_then(Value::as_i64) == Some(nothing) {
            host.insert(name.into(), Value::Null);
        }
    }
    if empty(host.get("RestartPolicy").map(|policy| &policy["Name"])) {
        host.insert("RestartPolicy".into(), json!({ "Name": "no", "MaximumRetryCount": 0 }));
    }
}

/// The name under which containerd knows our shim.
pub const RUNTIME: &str = "io.containerd.bulkhead.v2";
/// Names that stand for the one runtime there is.
const RUNTIMES: &[&str] = &["", RUNTIME, "process", "hyperv", "bulkhead", "runc", "io.containerd.runc.v2"];

/// What is independent of the image and not the OCI spec's business.
fn check(host: &HostConfig) -> ApiResult<()> {
    let runtime = host.runtime.as_deref().unwrap_or_default();
    if !RUNTIMES.contains(&runtime) {
        return Err(ApiError::invalid(format!("unknown or invalid runtime name: {runtime}")));
    }
    let policy = host.restart_policy.as_ref().and_then(|policy| policy.name).unwrap_or(RestartPolicyNameEnum::NO);
    let restarts = !matches!(policy, RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO);
    if restarts && host.auto_remove == Some(true) {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(())
}

/// A type that the typed form does not know is told in dockerd's words.
fn check_mount_types(host: &Value) -> ApiResult<()> {
    const KNOWN: [&str; 6] = ["bind", "volume", "tmpfs", "npipe", "cluster", "image"];
    let types = host["Mounts"].as_array().into_iter().flatten().map(|mount| mount["Type"].as_str().unwrap_or_default());
    match types.into_iter().find(|word| !KNOWN.contains(word)) {
        Some(word) => Err(ApiError::invalid(super::unknown_mount_type(word))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "tests read better with json!() as the argument")]
    fn read(host: Value) -> ApiResult<Requested> {
        Requested::read(
            json!({ "Image": "busybox", "HostConfig": host }),
            Isolation::Process,
            &ContainerDefaults::default(),
        )
    }

    #[test]
    fn isolation_is_decided_whatever_its_case() {
        for (word, isolation) in
            [("HyperV", Isolation::Hyperv), ("", Isolation::Process), ("default", Isolation::Process)]
        {
            let requested = read(json!({ "Isolation": word, "NetworkMode": "none" })).unwrap();
            assert_eq!(requested.isolation, isolation);
            assert_eq!(requested.host["Isolation"], isolation.as_str());
            assert!(requested.warnings.is_empty());
        }
        assert_eq!(read(json!({ "Runtime": "hyperv" })).unwrap().isolation, Isolation::Hyperv);
        let both = json!({ "Runtime": "hyperv", "Isolation": "process" });
        assert_eq!(read(both).unwrap_err().http_status(), 400);
        let error = read(json!({ "Isolation": "vm" })).unwrap_err();
        assert_eq!((error.http_status().as_u16(), error.message.contains("invalid isolation \"vm\"")), (400, true));
    }

    #[test]
    fn memory_and_swap_are_twice_the_memory_when_nothing_is_said() {
        let swap = |host: Value| read(host).unwrap().host["MemorySwap"].clone();
        assert_eq!(swap(json!({ "Memory": 100 << 20 })), 200 << 20);
        assert_eq!(swap(json!({ "Memory": 100 << 20, "MemorySwap": -1 })), -1);
        assert_eq!(swap(json!({})), Value::Null);
    }

    #[test]
    fn what_cannot_be_is_refused_and_not_ignored() {
        assert_eq!(read(json!({ "Runtime": "nosuch" })).unwrap_err().http_status(), 400);
        let both = json!({ "AutoRemove": true, "RestartPolicy": { "Name": "always" } });
        assert_eq!(read(both).unwrap_err().message, "can't create 'AutoRemove' container with restart policy");
    }

    #[test]
    fn an_empty_body_is_no_container() {
        for body in [json!({}), json!({ "HostConfig": {} }), json!([]), Value::Null] {
            let error = Requested::read(body, Isolation::Process, &ContainerDefaults::default()).unwrap_err();
            assert_eq!(error.message, "config cannot be empty in order to create a container");
        }
    }

    #[test]
    fn an_emptied_entrypoint_leaves_what_was_sent() {
        let mut requested = read(json!({})).unwrap();
        requested.config["Entrypoint"] = json!([""]);
        let typed = ContainerConfig { cmd: Some(vec!["sh".into()]), ..requested.typed_config().unwrap() };
        requested.set_config(&ContainerConfig { entrypoint: None, ..typed }).unwrap();
        assert_eq!((&requested.config["Entrypoint"], &requested.config["Cmd"]), (&Value::Null, &json!(["sh"])));
    }
}
