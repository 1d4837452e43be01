//! What is kept of a container, so that an engine that comes back knows it.

use std::io::Write;
use std::path::Path;

use bollard::models::{ContainerConfig, HostConfig};
use proto::control::UtilityVmReport;
use proto::{ContainerId, Digest, Isolation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::health::Health;
use super::mount_point::MountPoint;
use crate::clock::Timestamp;
use crate::network::Link;
use crate::network::endpoint::Endpoints;

/// Name of the record's file in the container's folder.
pub const FILE_NAME: &str = "config.json";
/// Exit code of a process whose end nobody saw: as if by SIGKILL.
pub const CODE_UNKNOWN: u32 = 137;
/// Version of the record's form.
const FORMAT: u32 = 1;

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("cannot access the record")]
    Access(#[from] std::io::Error),
    /// The file is no record.
    #[error("cannot understand the record")]
    Form(#[from] serde_json::Error),
    /// A newer engine wrote it.
    #[error("the record has form {0}; this engine knows form {FORMAT} only")]
    Newer(u32),
    /// Its log cannot be kept as it says.
    #[error("{0}")]
    Log(String),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When the run began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// 0 to 255.
    pub code: u32,
    /// Why it ended, if the engine knows more than the code.
    pub error: String,
    /// The kernel killed a process of it for want of memory.
    pub oom_killed: bool,
}

impl Ended {
    /// How long the run was, nanoseconds.
    #[must_use]
    pub fn ran_ns(&self) -> i64 {
        (self.finished_at.0 - self.started_at.0).max(0)
    }
}

/// Why a container could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// 127: no such command; 126: not executable; 128: anything else.
    pub code: u32,
    /// The line that the client got.
    pub error: String,
}

/// Where a container is in its life. The drawing is in [`crate::container`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// It never ran.
    Created {
        /// Set when it was to be started and could not.
        fault: Option<Fault>,
    },
    /// Its first process runs.
    Running {
        /// That process, on the host; of a hyperv container the VMM's.
        pid: u32,
        /// Since when.
        started_at: Timestamp,
        /// Its processes are stopped for the moment.
        paused: bool,
        /// How many of its processes the kernel has killed for want of memory, as far as that was told.
        #[serde(default)]
        oom_kills: u64,
    },
    /// It ended, and the engine is about to start it again.
    Restarting(Ended),
    /// It ended.
    Exited(Ended),
}

impl Phase {
    /// The word in `State.Status`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Running { paused: true, .. } => "paused",
            Self::Running { .. } => "running",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
        }
    }

    /// A process of it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Its processes are stopped for the moment.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Running { paused: true, .. })
    }

    /// Exit code of the last run, or of the start that failed.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Created { fault: Some(fault) } => fault.code,
            Self::Restarting(ended) | Self::Exited(ended) => ended.code,
            Self::Created { fault: None } | Self::Running { .. } => 0,
        }
    }

    /// Why the last run, or the start, failed.
    #[must_use]
    pub fn error(&self) -> &str {
        match self {
            Self::Created { fault: Some(fault) } => &fault.error,
            Self::Restarting(ended) | Self::Exited(ended) => &ended.error,
            Self::Created { fault: None } | Self::Running { .. } => "",
        }
    }

    /// The last run's end.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        match self {
            Self::Restarting(ended) | Self::Exited(ended) => Some(ended),
            Self::Created { .. } | Self::Running { .. } => None,
        }
    }

    /// How many processes of the run that goes on were killed for want of memory, as far as that was told.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        if let Self::Running { oom_kills, .. } = self { *oom_kills } else { 0 }
    }

    /// The kernel killed a process of it for want of memory, in the run that goes on or else in the last one.
    #[must_use]
    pub fn oom_killed(&self) -> bool {
        self.oom_kills() > 0 || self.ended().is_some_and(|ended| ended.oom_killed)
    }

    /// When the last run began.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        match self {
            Self::Running { started_at, .. } => Some(*started_at),
            _ => self.ended().map(|ended| ended.started_at),
        }
    }

    /// The phase after a start that failed.
    #[must_use]
    pub fn after_fault(&self, fault: Fault) -> Self {
        match self {
            Self::Exited(ended) | Self::Restarting(ended) => {
                Self::Exited(Ended { code: fault.code, error: fault.error, oom_killed: false, ..ended.clone() })
            }
            Self::Created { .. } | Self::Running { .. } => Self::Created { fault: Some(fault) },
        }
    }
}

/// Everything that is kept of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// Its identifier.
    pub id: ContainerId,
    /// Its name, without a slash.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The wall around it.
    pub isolation: Isolation,
    /// The image it was made from.
    pub image_id: Digest,
    /// What the client called that image.
    pub image: String,
    /// Docker's `Config`, as the client sent it, with the image's merged in.
    pub config: Value,
    /// Docker's `HostConfig`, as the client sent it, with `Isolation` decided.
    pub host: Value,
    /// What is mounted in it beside its root. Absent in records of engines that had no volumes.
    #[serde(default)]
    pub mounts: Vec<MountPoint>,
    /// What the client was warned of.
    pub warnings: Vec<String>,
    /// Where it is in its life.
    pub phase: Phase,
    /// How often the engine has started it again by itself.
    pub restarts: u32,
    /// A client stopped it: policies that respect this do not start it again.
    pub stopped_by_client: bool,
    /// What the last run's utility VM was.
    pub utility_vm: Option<UtilityVmReport>,
    /// What its health check has found, if it has one and ever ran.
    #[serde(default)]
    pub health: Option<Health>,
    /// Its networks.
    #[serde(default)]
    pub network: Endpoints,
    /// Containers that it knows by names of its own on the default bridge.
    #[serde(default)]
    pub links: Vec<Link>,
}

impl Record {
    /// The version that new records have.
    #[must_use]
    pub fn format() -> u32 {
        FORMAT
    }

    /// Reads the record of the container whose folder it is.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(dir: &Path) -> Result<Self, RecordError> {
        let value: Value = serde_json::from_slice(&std::fs::read(dir.join(FILE_NAME))?)?;
        let format = value["format"].as_u64().and_then(|format| u32::try_from(format).ok()).unwrap_or(0);
        if format > FORMAT {
            return Err(RecordError::Newer(format));
        }
        Ok(serde_json::from_value(value)?)
    }

    /// Writes the record so that there is always a whole one, the old or the new.
    ///
    /// It is not synced: the state of a container does not survive the host's crash anyway.
    ///
    /// # Errors
    /// [`RecordError::Access`]; no half-written file stays.
    pub fn write(&self, dir: &Path) -> Result<(), RecordError> {
        let mut file = tempfile_in(dir)?;
        let written = serde_json::to_vec(self).map_err(std::io::Error::other).and_then(|text| file.0.write_all(&text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&file.1, dir.join(FILE_NAME))) {
            // The disk is full, most likely: what was written of the new record only takes room.
            let _ = std::fs::remove_file(&file.1);
            return Err(error.into());
        }
        Ok(())
    }

    /// Docker's `Config` with types.
    ///
    /// # Errors
    /// [`RecordError::Form`].
    pub fn typed_config(&self) -> Result<ContainerConfig, RecordError> {
        Ok(ContainerConfig::deserialize(&self.config)?)
    }

    /// Docker's `HostConfig` with types.
    ///
    /// # Errors
    /// [`RecordError::Form`].
    pub fn typed_host(&self) -> Result<HostConfig, RecordError> {
        Ok(HostConfig::deserialize(&self.host)?)
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.config["Labels"].get(name)?.as_str()
    }

    /// A text of `HostConfig`, empty when it is not there.
    #[must_use]
    pub fn host_text(&self, name: &str) -> &str {
        self.host[name].as_str().unwrap_or_default()
    }

    /// A truth value of `Config`.
    #[must_use]
    pub fn config_flag(&self, name: &str) -> bool {
        self.config[name].as_bool().unwrap_or_default()
    }

    /// A truth value of `HostConfig`.
    #[must_use]
    pub fn host_flag(&self, name: &str) -> bool {
        self.host[name].as_bool().unwrap_or_default()
    }

    /// Entrypoint and command in one list.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let list = |name: &str| self.config[name].as_array().cloned().unwrap_or_default();
        let words = list("Entrypoint").into_iter().chain(list("Cmd"));
        words.map(|word| word.as_str().unwrap_or_default().to_owned()).collect()
    }
}

fn tempfile_in(dir: &Path) -> std::io::Result<(std::fs::File, std::path::PathBuf)> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join(format!(".{FILE_NAME}.new"));
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    Ok((file, path))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A record for tests.
    pub fn record(id: &str, name: &str) -> Record {
        Record {
            format: FORMAT,
            id: id.parse().unwrap(),
            name: name.into(),
            created: Timestamp(5),
            isolation: Isolation::Process,
            image_id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            image: "busybox".into(),
            config: json!({"Image": "busybox", "Cmd": ["sh", "-c", "x"], "Entrypoint": ["e"], "Labels": {"a": "b"}}),
            host: json!({"NetworkMode": "none", "Isolation": "process"}),
            mounts: Vec::new(),
            warnings: Vec::new(),
            phase: Phase::Created { fault: None },
            restarts: 0,
            stopped_by_client: false,
            utility_vm: None,
            health: None,
            network: Endpoints::default(),
            links: Vec::new(),
        }
    }

    #[test]
    fn a_record_survives_its_file_in_every_phase() {
        let dir = tempfile::tempdir().unwrap();
        let ended = Ended {
            started_at: Timestamp(1),
            finished_at: Timestamp(2),
            code: 137,
            error: "e".into(),
            oom_killed: true,
        };
        for phase in [
            Phase::Created { fault: None },
            Phase::Created { fault: Some(Fault { code: 127, error: "no".into() }) },
            Phase::Running { pid: 7, started_at: Timestamp(1), paused: true, oom_kills: 2 },
            Phase::Restarting(ended.clone()),
            Phase::Exited(ended),
        ] {
            let written = Record { phase, ..record("abc", "n") };
            written.write(dir.path()).unwrap();
            assert_eq!(Record::read(dir.path()).unwrap(), written);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn records_of_a_newer_engine_and_broken_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Record { format: FORMAT + 1, ..record("abc", "n") }.write(dir.path()).unwrap();
        assert!(matches!(Record::read(dir.path()), Err(RecordError::Newer(2))));
        std::fs::write(dir.path().join(FILE_NAME), "{\"format\":1,").unwrap();
        assert!(matches!(Record::read(dir.path()), Err(RecordError::Form(_))));
    }

    #[test]
    fn a_failed_start_keeps_the_last_run() {
        let fault = || Fault { code: 127, error: "no".into() };
        let created = Phase::Created { fault: None }.after_fault(fault());
        assert_eq!((created.word(), created.code(), created.error()), ("created", 127, "no"));
        let ended = Ended {
            started_at: Timestamp(1),
            finished_at: Timestamp(2),
            code: 0,
            error: String::new(),
            oom_killed: false,
        };
        let exited = Phase::Exited(ended).after_fault(fault());
        assert_eq!((exited.word(), exited.code(), exited.started_at()), ("exited", 127, Some(Timestamp(1))));
    }

    #[test]
    fn the_command_is_entrypoint_and_arguments() {
        assert_eq!(record("abc", "n").command(), ["e", "sh", "-c", "x"]);
    }
}
