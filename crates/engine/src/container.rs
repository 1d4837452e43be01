//! What is known of a container: its record, where it is in its life, what runs of it, who is attached.
//!
//! ```text
//!                       start                       exit
//!   create --> Created -------> Running(paused?) ----------> Exited --> removed
//!                 \  fault: stays, with its code   \  policy     ^
//!                  \----------------------------->  Restarting --/
//! ```
//!
//! Whoever changes a container's phase holds its [`Container::lifecycle`]; whoever looks at it reads the record. What
//! clients do with containers is in [`crate::containers`].

pub mod exec;
pub mod health;
pub mod mount_point;
pub mod pauses;
pub mod record;
pub mod store;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bollard::models::{ContainerConfig, HostConfig};
use proto::{ContainerId, Isolation};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, ApiResult};
use crate::events::EventBus;
use crate::log::{Log, LogFormat, LogOptions};
use crate::network::record::Network;
use crate::streams::Streams;
use crate::task::Task;
use exec::Exec;
use pauses::Pauses;
use record::{Phase, Record, RecordError};

/// What waiters wait for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// It runs, or is about to run again.
    pub running: bool,
    /// How many runs have ended since the engine began.
    pub exits: u64,
    /// Exit code of the last run.
    pub code: u32,
    /// Why the last run was no success, if the engine knows.
    pub error: String,
    /// It is gone, and its name is free.
    pub removed: bool,
}

/// What runs of a container.
#[derive(Clone)]
pub struct Running {
    /// Its shim.
    pub task: Task,
    /// The shim's process id.
    pub shim_pid: u32,
}

/// One container.
pub struct Container {
    /// Its identifier, 64 hexadecimal digits.
    pub id: ContainerId,
    /// The wall around it.
    pub isolation: Isolation,
    /// What is kept of it.
    pub dir: PathBuf,
    /// It has a terminal.
    pub terminal: bool,
    /// Held while its phase changes: by [`Container::hold`], but for those who look themselves whether it was removed.
    pub lifecycle: tokio::sync::Mutex<()>,
    /// Shared by operations on its files while it runs, held alone by one while it does not, and by a start until its root
    /// is mounted: no two may mount its changes.
    pub files: Arc<tokio::sync::RwLock<()>>,
    /// Shared by operations that need what runs of it: its mounts until they have entered them, its utility VM to their end. Its
    /// end waits for them a while.
    pub in_use: Arc<tokio::sync::RwLock<()>>,
    /// Its end waits for `in_use`.
    pub awaited: watch::Sender<bool>,
    /// Attached clients.
    pub streams: Arc<Streams>,
    /// Its log, unless its driver is `none`.
    pub log: Option<Arc<Log>>,
    record: Mutex<Record>,
    running: Mutex<Option<Running>>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    progress: watch::Sender<Progress>,
    pauses: Mutex<Pauses>,
    /// Taken while the record is written, so that the newest is written last.
    persist: Mutex<()>,
    /// Of a build's container, while the build works with it: says that the build's client has gone.
    abandoned: Mutex<Option<CancellationToken>>,
}

/// Locks; what a thread that panicked left is taken as it is, since every change under these locks is a single step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// A container by its record. `dir` is its folder below the data root.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    pub fn new(record: Record, dir: PathBuf) -> Result<Self, RecordError> {
        let (config, host) = (record.typed_config()?, record.typed_host()?);
        let log = log_options(&host).map_err(|error| RecordError::Log(error.to_string()))?;
        let log_path = match log.as_ref().map(|options| options.format) {
            Some(LogFormat::Local) => dir.join(format!("{}-local.log", record.id)),
            Some(LogFormat::Json) | None => dir.join(format!("{}-json.log", record.id)),
        };
        let progress =
            Progress { code: record.phase.code(), error: record.phase.error().to_owned(), ..Progress::default() };
        Ok(Self {
            id: record.id.clone(),
            isolation: record.isolation,
            terminal: config.tty.unwrap_or_default(),
            dir,
            lifecycle: tokio::sync::Mutex::default(),
            files: Arc::default(),
            in_use: Arc::default(),
            awaited: watch::Sender::new(false),
            streams: Arc::default(),
            log: log.map(|options| Arc::new(Log::new(log_path, options))),
            record: Mutex::new(record),
            running: Mutex::default(),
            execs: Mutex::default(),
            progress: watch::Sender::new(progress),
            pauses: Mutex::default(),
            persist: Mutex::default(),
            abandoned: Mutex::default(),
        })
    }

    /// What is known of it. Never held across an await.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// Its name, without a slash.
    pub fn name(&self) -> String {
        self.record().name.clone()
    }

    /// Its configuration.
    ///
    /// # Errors
    /// 500: it could be read when the container was made.
    pub fn config(&self) -> ApiResult<ContainerConfig> {
        self.record().typed_config().map_err(|error| ApiError::caused("its record is damaged", &error))
    }

    /// Its relation to the host.
    ///
    /// # Errors
    /// 500: it could be read when the container was made.
    pub fn host(&self) -> ApiResult<HostConfig> {
        self.record().typed_host().map_err(|error| ApiError::caused("its record is damaged", &error))
    }

    /// What runs of it.
    ///
    /// # Errors
    /// 409 when nothing does.
    pub fn running(&self) -> ApiResult<Running> {
        let running = lock(&self.running).clone();
        running.ok_or_else(|| ApiError::conflict(format!("container {} is not running", self.id)))
    }

    /// Notes what runs of it.
    pub fn set_running(&self, running: Option<Running>) {
        *lock(&self.running) = running;
    }

    /// Its further processes.
    pub fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        lock(&self.execs)
    }

    /// Takes the lifecycle of a container that is there. Who waited for it may find that another has removed the container.
    ///
    /// # Errors
    /// 404 when it was removed.
    pub async fn hold(&self) -> ApiResult<tokio::sync::MutexGuard<'_, ()>> {
        let held = self.lifecycle.lock().await;
        if self.progress.borrow().removed {
            return Err(ApiError::not_found(format!("No such container: {}", self.id)));
        }
        Ok(held)
    }

    /// The pauses before the engine starts it again.
    pub fn pauses(&self) -> MutexGuard<'_, Pauses> {
        lock(&self.pauses)
    }

    /// Ties it to a build, or, with `None`, no longer.
    pub fn work_for(&self, build: Option<CancellationToken>) {
        *lock(&self.abandoned) = build;
    }

    /// A build made it whose client has gone: it is about to be taken away, and no list has it any more.
    pub fn is_abandoned(&self) -> bool {
        lock(&self.abandoned).as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// What waiters wait for.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Changes what waiters wait for, and wakes them.
    pub fn tell(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// Changes its phase, and writes the record.
    ///
    /// # Errors
    /// 500 when the record cannot be written; the phase is changed all the same.
    pub async fn enter(self: &Arc<Self>, phase: Phase) -> ApiResult<()> {
        self.record().phase = phase;
        self.save().await
    }

    /// Writes the record.
    ///
    /// # Errors
    /// 500 when it cannot be written.
    pub async fn save(self: &Arc<Self>) -> ApiResult<()> {
        let container = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _one_at_a_time = lock(&container.persist);
            let record = container.record().clone();
            record.write(&container.dir)
        })
        .await?
        .map_err(|error| ApiError::caused("cannot write the container's record", &error))
    }

    /// Tells everybody that something happened to it.
    pub fn emit(&self, events: &EventBus, action: impl Into<String>, extra: &[(&str, String)]) {
        let mut attributes = BTreeMap::new();
        {
            let record = self.record();
            let labels = record.config["Labels"].as_object().into_iter().flatten();
            attributes.extend(labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())));
            attributes.insert("name".to_owned(), record.name.clone());
            attributes.insert("image".to_owned(), record.image.clone());
        }
        attributes.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        events.publish("container", action, self.id.as_str(), attributes);
    }
}

impl Container {
    /// Tells everybody that it is on a network now, or is no longer.
    pub fn emit_network(&self, events: &EventBus, action: &'static str, network: &Network) {
        let attributes = [
            ("container", self.id.to_string()),
            ("name", network.name.clone()),
            ("type", network.driver.as_str().to_owned()),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value)).into();
        events.publish("network", action, &network.id, attributes);
    }
}

/// The log options of a container that is configured so; none for the driver `none`.
///
/// # Errors
/// What [`LogOptions::parse`] refuses.
pub fn log_options(host: &HostConfig) -> Result<Option<LogOptions>, crate::log::LogOptionsError> {
    let config = host.log_config.clone().unwrap_or_default();
    let options = config.config.unwrap_or_default().into_iter().collect();
    LogOptions::parse(config.typ.as_deref().unwrap_or_default(), &options)
}

/// A file or folder of what a container keeps.
#[must_use]
pub fn kept(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}
