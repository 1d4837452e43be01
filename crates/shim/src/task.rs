//! A container as a containerd task: its processes' states, and what each request does to them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use containerd_shim_protos::events::task as message;
use proto::{ContainerId, ErrorKind, ExecId, ProcessDetails, Status};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::bundle::{Bundle, BundleError};
use crate::clock;
use crate::compute::{Changes, ComputeSystem, ExecRequest, Process};
use crate::events::{Event, Publisher};
use crate::lack::{self, Lack};
use crate::state::{Exit, ProcessState, WrongState};
use crate::stdio::{StdioError, StdioPaths};
use crate::systemd;
use crate::turns::Turns;

/// How long Delete waits for a killed process and for output that is still being copied.
const DELETE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a first process may take to die of SIGKILL before everything else of its container is killed, too.
const DEATH_PATIENCE: Duration = Duration::from_millis(200);

/// A request that a task cannot fulfil.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The process is in another state.
    #[error(transparent)]
    WrongState(#[from] WrongState),
    /// No exec of that identifier.
    #[error("exec process {0} not found")]
    NoSuchExec(String),
    /// The identifier is taken.
    #[error("exec process {0} already exists")]
    ExecExists(ExecId),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// What runs the container.
    #[error(transparent)]
    System(#[from] Status),
}

impl TaskError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::WrongState(error) => error.kind(),
            Self::NoSuchExec(_) => ErrorKind::NotFound,
            Self::ExecExists(_) => ErrorKind::AlreadyExists,
            Self::Bundle(error) => error.kind(),
            Self::Stdio(error) => error.kind(),
            Self::System(status) => status.kind,
        }
    }
}

type State = ProcessState<Arc<dyn Process>, Box<oci_spec::runtime::Process>>;

/// A process with its state and those who wait for it.
struct TrackedProcess {
    /// Empty for the container's first process, as in every request of the Task API.
    exec_id: String,
    stdio: StdioPaths,
    state: Mutex<State>,
    /// Set when the process has ended and its output is complete.
    complete: watch::Sender<Option<(u32, Exit)>>,
    /// An ended process, kept until Delete: it holds what the caller has not read yet.
    ended: OnceLock<Arc<dyn Process>>,
}

impl TrackedProcess {
    fn new(exec_id: String, stdio: StdioPaths, state: State) -> Arc<Self> {
        Arc::new(Self {
            exec_id,
            stdio,
            state: Mutex::new(state),
            complete: watch::Sender::new(None),
            ended: OnceLock::new(),
        })
    }

    async fn pid(&self) -> u32 {
        match &*self.state.lock().await {
            State::Stopped { pid, .. } => *pid,
            state => state.process().map_or(0, |process| process.pid()),
        }
    }

    async fn completed(&self) -> (u32, Exit) {
        let mut complete = self.complete.subscribe();
        let seen = complete.wait_for(Option::is_some).await;
        // The sender lives in self.
        seen.ok().and_then(|ended| ended.clone()).unwrap_or_else(|| (0, Exit::unseen("its record was dropped")))
    }
}

/// What State answers.
pub struct Snapshot {
    /// See [`StdioPaths`].
    pub stdio: StdioPaths,
    /// 0 before it lives.
    pub pid: u32,
    /// One word of [`ProcessState::word`].
    pub state: &'static str,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

/// A container as a task. One per shim.
pub struct Task {
    id: ContainerId,
    bundle: Bundle,
    system: Box<dyn ComputeSystem>,
    init: Arc<TrackedProcess>,
    execs: Mutex<HashMap<ExecId, Arc<TrackedProcess>>>,
    turns: Turns,
    publisher: Publisher,
    lack: Lack,
}

impl Task {
    /// The task of a created compute system. Begins to watch for its first process's end.
    #[must_use]
    pub fn new(
        id: ContainerId,
        bundle: Bundle,
        system: Box<dyn ComputeSystem>,
        stdio: StdioPaths,
        publisher: Publisher,
    ) -> Arc<Self> {
        let process = system.init();
        let init = TrackedProcess::new(String::new(), stdio, State::Created(Arc::clone(&process)));
        let (execs, turns) = (Mutex::default(), Turns::default());
        let task = Arc::new(Self { id, bundle, system, init, execs, turns, publisher, lack: Lack::default() });
        tokio::spawn(Arc::clone(&task).watch(Arc::clone(&task.init), process));
        task
    }

    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Its bundle.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Process id of the first process.
    pub async fn pid(&self) -> u32 {
        self.init.pid().await
    }

    /// Starts the first process, or an announced exec when its turn has come. Answers its process id.
    ///
    /// # Errors
    /// [`TaskError`]: wrong state, too many execs wait, or the command cannot be run.
    pub async fn start(self: &Arc<Self>, exec_id: &str) -> Result<u32, TaskError> {
        let _turn = if exec_id.is_empty() { None } else { Some(self.turns.take().await?) };
        let tracked = self.find(exec_id).await?;
        // Held until the event is out: the watcher needs it before it can publish the exit.
        let mut state = tracked.state.lock().await;
        if !exec_id.is_empty() {
            return self.start_exec(&tracked, state).await;
        }
        let State::Created(process) = &*state else { return Err(state.wrong("start").into()) };
        let pid = process.pid();
        self.system.start().await?;
        state.start()?;
        self.publisher.publish(&Event::Start(message::TaskStart {
            container_id: self.id.to_string(),
            pid,
            ..Default::default()
        }));
        if self.publisher.is_heard() {
            self.watch_memory(lack::PATIENCE);
        }
        Ok(pid)
    }

    async fn start_exec(
        self: &Arc<Self>,
        tracked: &Arc<TrackedProcess>,
        mut state: MutexGuard<'_, State>,
    ) -> Result<u32, TaskError> {
        let State::Added(process) = &*state else { return Err(state.wrong("start").into()) };
        self.init.state.lock().await.running("exec in")?;
        let request = ExecRequest { process: process.clone(), stdio: tracked.stdio.clone() };
        let process = match self.system.exec(request).await {
            Ok(process) => process,
            Err(status) => {
                let exit = Exit { code: exit_code_of(status.kind), ..Exit::unseen(status.to_string()) };
                state.stop(0, exit.clone());
                tracked.complete.send_replace(Some((0, exit)));
                return Err(status.into());
            }
        };
        let pid = process.pid();
        state.start_exec(Arc::clone(&process))?;
        self.publisher.publish(&Event::ExecStarted(message::TaskExecStarted {
            container_id: self.id.to_string(),
            exec_id: tracked.exec_id.clone(),
            pid,
            ..Default::default()
        }));
        tokio::spawn(Arc::clone(self).watch(Arc::clone(tracked), process));
        Ok(pid)
    }

    /// Announces a further process.
    ///
    /// # Errors
    /// [`TaskError`]: the identifier is taken, the container does not run.
    pub async fn add_exec(&self, exec_id: ExecId, exec: ExecRequest) -> Result<(), TaskError> {
        self.init.state.lock().await.running("exec in")?;
        let mut execs = self.execs.lock().await;
        if execs.contains_key(&exec_id) {
            return Err(TaskError::ExecExists(exec_id));
        }
        self.publisher.publish(&Event::ExecAdded(message::TaskExecAdded {
            container_id: self.id.to_string(),
            exec_id: exec_id.to_string(),
            ..Default::default()
        }));
        let tracked = TrackedProcess::new(exec_id.to_string(), exec.stdio, State::Added(exec.process));
        execs.insert(exec_id, tracked);
        Ok(())
    }

    /// What a process is.
    ///
    /// # Errors
    /// [`TaskError::NoSuchExec`].
    pub async fn snapshot(&self, exec_id: &str) -> Result<Snapshot, TaskError> {
        let tracked = self.find(exec_id).await?;
        let state = tracked.state.lock().await;
        let pid = match &*state {
            State::Stopped { pid, .. } => *pid,
            state => state.process().map_or(0, |process| process.pid()),
        };
        Ok(Snapshot { stdio: tracked.stdio.clone(), pid, state: state.word(), exit: state.exit().cloned() })
    }

    /// Waits until a process has ended and its output is complete.
    ///
    /// # Errors
    /// [`TaskError::NoSuchExec`].
    pub async fn wait(&self, exec_id: &str) -> Result<Exit, TaskError> {
        Ok(self.find(exec_id).await?.completed().await.1)
    }

    /// Sends a signal to a process, or to every process of the container.
    ///
    /// # Errors
    /// [`TaskError`]: it has ended, or was not started.
    pub async fn kill(self: &Arc<Self>, exec_id: &str, signal: i32, all: bool) -> Result<(), TaskError> {
        self.send(exec_id, signal, all).await?;
        if signal == libc::SIGKILL && exec_id.is_empty() && !all {
            tokio::spawn(kill_the_rest(Arc::downgrade(self)));
        }
        Ok(())
    }

    async fn send(&self, exec_id: &str, signal: i32, all: bool) -> Result<(), TaskError> {
        let tracked = self.find(exec_id).await?;
        let state = tracked.state.lock().await;
        let process = Arc::clone(state.live("kill")?);
        let paused = matches!(*state, State::Paused(_));
        drop(state);
        let send = async { if all { self.system.signal_all(signal).await } else { process.signal(signal).await } };
        if !(paused && signal == libc::SIGKILL) {
            return Ok(send.await?);
        }
        // Nothing frozen dies. The signal goes first, so that the thawed process does not run; a utility VM takes it
        // only once it runs again.
        let (sent, resumed) = tokio::join!(send, self.resume());
        match resumed {
            // With cgroup v2 it has died frozen.
            Ok(()) | Err(TaskError::WrongState(_)) => Ok(sent?),
            Err(error) => Err(error),
        }
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// [`TaskError`]: it does not run.
    pub async fn pause(&self) -> Result<(), TaskError> {
        let mut state = self.init.state.lock().await;
        state.running("pause")?;
        self.system.pause().await?;
        state.pause()?;
        self.publisher
            .publish(&Event::Paused(message::TaskPaused { container_id: self.id.to_string(), ..Default::default() }));
        Ok(())
    }

    /// Undoes [`Task::pause`].
    ///
    /// # Errors
    /// [`TaskError`]: it is not paused.
    pub async fn resume(&self) -> Result<(), TaskError> {
        let mut state = self.init.state.lock().await;
        if !matches!(*state, State::Paused(_)) {
            return Err(state.wrong("resume").into());
        }
        self.system.resume().await?;
        state.resume()?;
        self.publisher
            .publish(&Event::Resumed(message::TaskResumed { container_id: self.id.to_string(), ..Default::default() }));
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`TaskError`]: it has ended, or has no terminal.
    pub async fn resize(&self, exec_id: &str, width: u32, height: u32) -> Result<(), TaskError> {
        let tracked = self.find(exec_id).await?;
        let process = Arc::clone(tracked.state.lock().await.live("resize the terminal of")?);
        Ok(process.resize(width, height).await?)
    }

    /// Ends a process's input. One that has ended has none: that is no error.
    ///
    /// # Errors
    /// [`TaskError::NoSuchExec`].
    pub async fn close_stdin(&self, exec_id: &str) -> Result<(), TaskError> {
        let tracked = self.find(exec_id).await?;
        if let Some(process) = tracked.state.lock().await.process() {
            process.close_stdin();
        }
        Ok(())
    }

    /// Every process, as ps(1) shows it.
    ///
    /// # Errors
    /// [`TaskError`]: the container does not run.
    pub async fn processes(&self) -> Result<Vec<ProcessDetails>, TaskError> {
        self.init.state.lock().await.live("list")?;
        Ok(self.system.processes().await?)
    }

    /// What runs the container, for requests that no process state stands in the way of.
    ///
    /// # Errors
    /// [`TaskError::WrongState`]: it has ended.
    pub async fn live_system(&self, action: &'static str) -> Result<&dyn ComputeSystem, TaskError> {
        self.init.state.lock().await.live(action)?;
        Ok(&*self.system)
    }

    /// Forgets an exec that has ended, or was never started.
    ///
    /// # Errors
    /// [`TaskError`]: it runs.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<(u32, Exit), TaskError> {
        let tracked = self.find(exec_id).await?;
        let state = tracked.state.lock().await;
        let ended = match &*state {
            State::Stopped { pid, exit } => (*pid, exit.clone()),
            State::Added(_) => (0, Exit::unseen("it was never started")),
            _ => return Err(state.wrong("delete").into()),
        };
        drop(state);
        let _ = tokio::time::timeout(DELETE_PATIENCE, tracked.completed()).await;
        self.execs.lock().await.retain(|id, _| id.as_str() != exec_id);
        Ok(ended)
    }

    /// Gives everything of the container back. A container that was created and never started is killed for it.
    ///
    /// # Errors
    /// [`TaskError`]: it runs; or something cannot be given back, then it may be repeated.
    pub async fn delete(&self, changes: Changes) -> Result<(u32, Exit), TaskError> {
        let state = self.init.state.lock().await;
        match &*state {
            State::Running(_) | State::Paused(_) | State::Added(_) => return Err(state.wrong("delete").into()),
            State::Stopped { .. } => {}
            State::Created(process) => {
                let process = Arc::clone(process);
                // It may end by itself meanwhile.
                let _ = process.signal(libc::SIGKILL).await;
            }
        }
        drop(state);
        if tokio::time::timeout(DELETE_PATIENCE, self.init.completed()).await.is_err() {
            tracing::warn!("deleted before all of its output was read");
        }
        self.system.delete(changes).await?;
        systemd::clear(&self.bundle);
        let state = self.init.state.lock().await;
        let (pid, exit) = match &*state {
            State::Stopped { pid, exit } => (*pid, exit.clone()),
            other => (other.process().map_or(0, |p| p.pid()), Exit::unseen("it did not end when it was killed")),
        };
        self.publisher.publish(&Event::Delete(message::TaskDelete {
            container_id: self.id.to_string(),
            pid,
            exit_status: exit.code,
            exited_at: clock::timestamp(exit.at_ns),
            ..Default::default()
        }));
        Ok((pid, exit))
    }

    async fn find(&self, exec_id: &str) -> Result<Arc<TrackedProcess>, TaskError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = self.execs.lock().await;
        let found = exec_id.parse::<ExecId>().ok().and_then(|id| execs.get(&id).cloned());
        found.ok_or_else(|| TaskError::NoSuchExec(exec_id.chars().take(100).collect()))
    }

    /// Sees a process's end: state and report at once, then the output, then those who wait, then the event.
    async fn watch(self: Arc<Self>, tracked: Arc<TrackedProcess>, process: Arc<dyn Process>) {
        let exit = process.exited().await;
        let pid = process.pid();
        let is_init = tracked.exec_id.is_empty();
        tracing::info!(exec_id = tracked.exec_id, pid, ?exit, "process ended");
        {
            let mut state = tracked.state.lock().await;
            if let Some(ended) = state.stop(pid, exit.clone()) {
                tracked.ended.get_or_init(|| ended);
            }
            if is_init && let Err(error) = self.bundle.write_exit_report(&exit) {
                tracing::error!(%error, "the exit is not recorded");
            }
        }
        process.output_complete().await;
        if is_init {
            // Before those who wait hear of the end: a reason that comes after it may be of no use to them.
            self.tell_of_kills(exit.oom_kills);
            self.lack.end();
        }
        tracked.complete.send_replace(Some((pid, exit.clone())));
        let container_id = self.id.to_string();
        self.publisher.publish(&Event::Exit(message::TaskExit {
            id: if is_init { container_id.clone() } else { tracked.exec_id.clone() },
            container_id,
            pid,
            exit_status: exit.code,
            exited_at: clock::timestamp(exit.at_ns),
            ..Default::default()
        }));
    }
}

impl Task {
    /// Waits until the kernel has killed more of its processes for want of memory than `seen`, and answers how many; when the
    /// container has ended, with no greater number. From now on somebody wants to know.
    pub async fn oom_kills_after(self: &Arc<Self>, seen: u64) -> u64 {
        self.watch_memory(Duration::ZERO);
        self.lack.told_after(seen).await
    }

    /// Begins to watch for kills for want of memory, if nobody has; ends with the container.
    fn watch_memory(self: &Arc<Self>, patience: Duration) {
        if !self.lack.begin() {
            return;
        }
        let task = Arc::clone(self);
        tokio::spawn(async move {
            let watch = async {
                tokio::time::sleep(patience).await;
                let next = |seen| task.system.oom_kills_after(seen);
                lack::watch(lack::PACE, next, |kills| task.tell_of_kills(kills)).await;
            };
            tokio::select! {
                () = watch => {}
                // A guest need not say that it is over.
                _ = task.init.completed() => {}
            }
        });
    }

    /// Tells of kills for want of memory that nobody was told of yet. False after the end.
    fn tell_of_kills(&self, kills: u64) -> bool {
        self.lack.count(kills, || {
            let container_id = self.id.to_string();
            self.publisher.publish(&Event::Oom(message::TaskOOM { container_id, ..Default::default() }));
        })
    }
}

/// A shell's numbers for a command that cannot be run.
fn exit_code_of(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::NotFound => 127,
        ErrorKind::PermissionDenied => 126,
        _ => 255,
    }
}

/// Kills everything in a container whose first process does not die of SIGKILL: it may wait in the kernel, unkillable, for another of
/// them, as for the lock of a pipe that that one splices into.
async fn kill_the_rest(task: Weak<Task>) {
    tokio::time::sleep(DEATH_PATIENCE).await;
    let Some(task) = task.upgrade() else { return };
    if task.init.state.lock().await.live("kill").is_err() {
        return;
    }
    if let Err(error) = task.system.signal_all(libc::SIGKILL).await {
        tracing::warn!(%error, "cannot kill all processes of the container");
    }
}

#[cfg(test)]
mod tests;
