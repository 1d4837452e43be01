//! Containers: what is kept of them, what runs of them, and every endpoint below `/containers` and `/exec`.
//!
//! ```text
//!                       start                       exit
//!   create --> Created -------> Running(paused?) ----------> Exited --> removed
//!                 \  fault: stays, with its code   \  policy     ^
//!                  \----------------------------->  Restarting --/
//! ```
//!
//! Whoever changes a container's phase holds its [`Container::lifecycle`]; whoever looks at it reads the record.

mod attach;
mod bundle;
mod config;
mod create;
mod exec;
mod exec_start;
mod inspect;
mod kill;
mod launch;
mod list;
mod logs;
mod names;
mod pause;
mod prune;
pub mod record;
mod remove;
mod rename;
mod resize;
mod restart_policy;
mod shim;
mod size;
mod start;
mod stats;
mod stop;
pub mod store;
pub mod supervise;
mod top;
mod update;
mod usage;
mod view;
mod wait;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::routing::{delete, get, post};
use bollard::models::{ContainerConfig, HostConfig};
use proto::{ContainerId, Isolation};
use tokio::sync::watch;

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::log::{Log, LogOptions};
use crate::streams::Streams;
use crate::task::Task;
use exec::Exec;
use record::{Phase, Record, RecordError};

pub use launch::Run;
pub use remove::{discard, uses_of};
pub use restart_policy::apply_at_start;
pub use shim::{bury, delete_leftovers};

/// The routes of this module.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/containers/json", get(list::list))
        .route("/containers/create", post(create::create))
        .route("/containers/prune", post(prune::prune))
        .route("/containers/{id}", delete(remove::remove))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/start", post(start::start))
        .route("/containers/{id}/stop", post(stop::stop))
        .route("/containers/{id}/restart", post(stop::restart))
        .route("/containers/{id}/kill", post(kill::kill))
        .route("/containers/{id}/pause", post(pause::pause))
        .route("/containers/{id}/unpause", post(pause::unpause))
        .route("/containers/{id}/rename", post(rename::rename))
        .route("/containers/{id}/update", post(update::update))
        .route("/containers/{id}/resize", post(resize::container))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/wait", post(wait::wait))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/top", get(top::top))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec_start::start))
        .route("/exec/{id}/resize", post(resize::exec))
        .route("/exec/{id}/json", get(exec::inspect))
}

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
    /// Held while its phase changes.
    pub lifecycle: tokio::sync::Mutex<()>,
    /// Attached clients.
    pub streams: Arc<Streams>,
    /// Its log, unless its driver is `none`.
    pub log: Option<Arc<Log>>,
    record: Mutex<Record>,
    running: Mutex<Option<Running>>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    progress: watch::Sender<Progress>,
    /// Taken while the record is written, so that the newest is written last.
    persist: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// A container by its record. `dir` is its folder below the data root.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    pub fn new(record: Record, dir: PathBuf) -> Result<Self, RecordError> {
        let (config, host) = (record.typed_config()?, record.typed_host()?);
        let log_path = dir.join(format!("{}-json.log", record.id));
        let log = log_options(&host).map_err(|error| RecordError::Log(error.to_string()))?;
        let progress = Progress { code: record.phase.code(), error: record.phase.error().to_owned(), ..Progress::default() };
        Ok(Self {
            id: record.id.clone(),
            isolation: record.isolation,
            terminal: config.tty.unwrap_or_default(),
            dir,
            lifecycle: tokio::sync::Mutex::default(),
            streams: Arc::default(),
            log: log.map(|options| Arc::new(Log::new(log_path, options))),
            record: Mutex::new(record),
            running: Mutex::default(),
            execs: Mutex::default(),
            progress: watch::Sender::new(progress),
            persist: Mutex::default(),
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
    pub fn emit(&self, engine: &Engine, action: impl Into<String>, extra: &[(&str, String)]) {
        let mut attributes = BTreeMap::new();
        {
            let record = self.record();
            let labels = record.config["Labels"].as_object().into_iter().flatten();
            attributes.extend(labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())));
            attributes.insert("name".to_owned(), record.name.clone());
            attributes.insert("image".to_owned(), record.image.clone());
        }
        attributes.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        engine.events.publish("container", action, self.id.as_str(), attributes);
    }

    /// Its bundle, which is there while it runs.
    #[must_use]
    pub fn bundle(&self, engine: &Engine) -> PathBuf {
        engine.bundles_dir().join(self.id.as_str())
    }

    /// Its shim's socket, which is there while it runs.
    #[must_use]
    pub fn socket(&self, engine: &Engine) -> PathBuf {
        socket_path(engine, &self.id)
    }
}

/// The socket of a container's shim: short, since a socket's path may have 107 characters only.
fn socket_path(engine: &Engine, id: &ContainerId) -> PathBuf {
    let id = id.as_str();
    engine.sockets_dir().join(id.get(..12).unwrap_or(id))
}

fn log_options(host: &HostConfig) -> Result<Option<LogOptions>, crate::log::LogOptionsError> {
    let config = host.log_config.clone().unwrap_or_default();
    let options = config.config.unwrap_or_default().into_iter().collect();
    LogOptions::parse(config.typ.as_deref().unwrap_or_default(), &options)
}

/// The folder and file names of what a container keeps.
fn kept(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}
