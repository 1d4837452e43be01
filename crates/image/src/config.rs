//! Image configurations: reading them within bounds, and what the store knows of an image.

use oci_spec::image::{ImageConfiguration, Os};
use proto::{Digest, ErrorKind};
use sha2::{Digest as _, Sha256};

use crate::compression::digest_of;
use crate::limits::{MAX_JSON_BYTES, MAX_LAYERS};
use crate::timestamp::Timestamp;

/// An image configuration that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`MAX_JSON_BYTES`].
    #[error("the image configuration has {bytes} bytes, more than {MAX_JSON_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// No JSON, keys twice, too deep, or not of the form of an image configuration.
    #[error("the image configuration is malformed")]
    Malformed(#[source] serde_json::Error),
    /// For another operating system.
    #[error("the image is for {os}, not for linux")]
    ForeignSystem {
        /// Which.
        os: String,
    },
    /// An image without layers has nothing to run.
    #[error("the image has no layers")]
    NoLayers,
    /// More than overlayfs can stack.
    #[error("the image has {count} layers, more than {MAX_LAYERS}")]
    TooManyLayers {
        /// How many.
        count: usize,
    },
    /// A field holds what it must not.
    #[error("the image configuration's {field} is invalid")]
    Field {
        /// Which.
        field: &'static str,
    },
}

impl ConfigError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } | Self::TooManyLayers { .. } => ErrorKind::ResourceExhausted,
            Self::ForeignSystem { .. } => ErrorKind::NotImplemented,
            Self::Malformed(_) | Self::NoLayers | Self::Field { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// An image that is in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    /// The configuration as far as OCI specifies it.
    pub config: ImageConfiguration,
    /// The configuration byte for byte; holds Docker's additions (health check, shell, on-build triggers).
    pub config_json: Vec<u8>,
    /// The layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Length of each layer's regular files, bytes, in the order of `diff_ids`.
    pub layer_bytes: Vec<u64>,
    /// Sum of `layer_bytes`.
    pub size_bytes: u64,
    /// When it was made, RFC 3339, as the configuration says.
    pub created: Option<String>,
}

impl Image {
    /// Seconds since the epoch of `created`, 0 if it is not known.
    #[must_use]
    pub fn created_unix(&self) -> i64 {
        self.created.as_deref().and_then(Timestamp::from_rfc3339).map_or(0, |created| created.seconds)
    }

    /// The same to the nanosecond: seconds since the epoch, and what is beyond them.
    #[must_use]
    pub fn created_at(&self) -> (i64, u32) {
        let created = self.created.as_deref().and_then(Timestamp::from_rfc3339);
        created.map_or((0, 0), |created| (created.seconds, created.nanoseconds))
    }

    /// The digest of every stack of layers from the lowest one up, in the order of `diff_ids`.
    ///
    /// Source: OCI image-spec, config.md#layer-chainid.
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        chain_ids(&self.diff_ids)
    }
}

pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::from_sha256(&Sha256::digest(format!("{below} {diff_id}")).into()),
        };
        chain.push(next);
    }
    chain
}

/// A configuration that was read and found good.
#[derive(Debug, Clone)]
pub(crate) struct ParsedConfig {
    pub id: Digest,
    pub config: ImageConfiguration,
    pub diff_ids: Vec<Digest>,
}

/// Reads and checks an image configuration from outside, which has layers.
pub(crate) fn parse(json: &[u8]) -> Result<ParsedConfig, ConfigError> {
    let parsed = parse_own(json)?;
    if parsed.diff_ids.is_empty() { Err(ConfigError::NoLayers) } else { Ok(parsed) }
}

/// Reads and checks an image configuration; one that a build began from nothing may have no layers yet.
pub(crate) fn parse_own(json: &[u8]) -> Result<ParsedConfig, ConfigError> {
    if json.len() as u64 > MAX_JSON_BYTES {
        return Err(ConfigError::TooLarge { bytes: json.len() });
    }
    let config: ImageConfiguration = serde_json::from_slice(json).map_err(ConfigError::Malformed)?;
    if *config.os() != Os::Linux {
        return Err(ConfigError::ForeignSystem { os: config.os().to_string().chars().take(40).collect() });
    }
    if config.rootfs().typ() != "layers" {
        return Err(ConfigError::Field { field: "rootfs.type" });
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() > MAX_LAYERS {
        return Err(ConfigError::TooManyLayers { count: diff_ids.len() });
    }
    let diff_ids: Result<Vec<Digest>, _> = diff_ids.iter().map(|text| text.parse()).collect();
    let diff_ids = diff_ids.map_err(|_| ConfigError::Field { field: "rootfs.diff_ids" })?;
    check_texts(&config)?;
    Ok(ParsedConfig { id: digest_of(json), config, diff_ids })
}

/// No text that goes to execve(2) or open(2) may hold a NUL.
fn check_texts(config: &ImageConfiguration) -> Result<(), ConfigError> {
    let Some(run) = config.config() else { return Ok(()) };
    let lists = [("Env", run.env()), ("Cmd", run.cmd()), ("Entrypoint", run.entrypoint()), ("Volumes", run.volumes())];
    for (field, texts) in lists {
        if texts.iter().flatten().any(|text| text.contains('\0')) {
            return Err(ConfigError::Field { field });
        }
    }
    for (field, text) in [("WorkingDir", run.working_dir()), ("User", run.user())] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(ConfigError::Field { field });
        }
    }
    Ok(())
}

/// The architecture of this host in Go's words, as images are labelled with.
#[must_use]
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(os: &str, rest: &str) -> Vec<u8> {
        format!(r#"{{"architecture":"amd64","os":"{os}","rootfs":{{"type":"layers","diff_ids":[{rest}]}}}}"#)
            .into_bytes()
    }

    #[test]
    fn dockers_nulls_and_additions_are_read() {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","container":"x","docker_version":"20.10","config":{{"Hostname":"",
            "Env":null,"Cmd":["sh"],"Volumes":null,"Labels":null,"Entrypoint":null,"OnBuild":null,"ExposedPorts":{{"80/tcp":{{}}}},
            "Healthcheck":{{"Test":["NONE"]}}}},"history":[{{"created_by":"x","empty_layer":true}}],
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
            "0".repeat(64)
        );
        let parsed = parse(json.as_bytes()).unwrap();
        assert_eq!(parsed.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["sh"]);
    }

    #[test]
    fn hostile_configurations_are_refused() {
        let good = format!("\"sha256:{}\"", "0".repeat(64));
        assert!(parse(&config("linux", &good)).is_ok());
        let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
        let many = vec![good.as_str(); MAX_LAYERS + 1].join(",");
        let twice = config("linux", &good).strip_suffix(b"}").unwrap().to_vec();
        let env = [&twice[..], br#","config":{"Env":["A=\u0000"]}}"#].concat();
        let twice = [&twice[..], br#","os":"linux"}"#].concat();
        for (bad, what) in [
            (config("windows", &good), "foreign system"),
            (config("linux", ""), "no layers"),
            (config("linux", &many), "many layers"),
            (config("linux", "\"sha256:../..\""), "digest"),
            (deep, "depth"),
            (twice, "duplicate key"),
            (env, "NUL"),
            (vec![b' '; 9 << 20], "length"),
        ] {
            assert!(parse(&bad).is_err(), "{what}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let layers = [digest_of(b"a"), digest_of(b"b")];
        let expected = digest_of(format!("{} {}", layers[0], layers[1]).as_bytes());
        assert_eq!(chain_ids(&layers), [layers[0].clone(), expected]);
    }
}
