//! One container, from its creation to its removal.
//!
//! ```text
//!  create --> Created --start--> Running <--pause/resume--> Paused
//!                |                  |                          |
//!                +---- the process ends, or is killed ---------+--> Stopped --delete--> (gone)
//! ```
//!
//! The state is the kernel's: whether the process lives, whether its cgroup is frozen. What else must be remembered is in
//! the folder `<root>/<id>`: `record.json`, `bundle/config.json` (the specification as libcontainer has it), `seccomp.bpf`, and
//! libcontainer's own. A container that was made of a zygote is remembered by this process alone, and has no folder until a
//! further process needs its seccomp filter.

mod creation;
mod specialization;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{Hook, LinuxResources, Process, Spec};
use proto::{ContainerId, ProcessDetails};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup::stats::Stats;
use crate::cgroup::{Cgroup, CgroupError, OomWatch};
use crate::confine::give_to;
use crate::error::{CreateError, DeleteError, ExecError, LoadError, StartError};
use crate::failure::CommandError;
use crate::helper::Helper;
use crate::init::LAUNCHING;
use crate::lock::Lock;
use crate::processes::{self, Stat};
use crate::rootpath::Root;
use crate::seccomp::Filter;
use crate::spec::{self, HostLimits, SpecError};
use crate::user::Accounts;
use crate::wire::{Answer, ExecRequest, Request, Streams, borrow_all};
use crate::zygote::Parts;
use crate::{exec, hooks};
use creation::Creation;
pub use specialization::PlainBlueprint;

/// Where a process' standard streams lead.
#[derive(Debug)]
pub enum Stdio {
    /// To these files; `None` is /dev/null.
    Streams {
        /// Read by the process.
        stdin: Option<OwnedFd>,
        /// Written by the process.
        stdout: Option<OwnedFd>,
        /// Written by the process.
        stderr: Option<OwnedFd>,
    },
    /// To a terminal that is made for it; a size of 0 is left unset.
    Terminal {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
}

/// A process that is there. It is the caller's child: the caller reaps it.
#[derive(Debug)]
pub struct Started {
    /// Its process id, as the caller sees it.
    pub pid: u32,
    /// The terminal's master, if it has a terminal.
    pub terminal: Option<OwnedFd>,
}

/// What a container is made from.
#[derive(Debug)]
pub struct Blueprint {
    /// The specification.
    pub spec: Spec,
    /// Its seccomp profile, compiled; whatever profile the specification has itself is not looked at.
    pub seccomp: Option<Filter>,
    /// Where a relative root begins; no file in it is read.
    pub bundle: PathBuf,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    id: String,
    folder: PathBuf,
    /// Absent when its creation was cut off.
    known: Option<Known>,
    cgroup: Option<Cgroup>,
    /// There between creation and start, in the process that created it.
    gate: Option<Gate>,
    /// What it was made of, if that was a zygote.
    origin: Option<Origin>,
}

/// Where the container's first process waits to execute its command.
#[derive(Debug)]
enum Gate {
    /// At libcontainer's socket; how the start went comes over this pipe.
    Libcontainer(fs::File),
    /// At this socket, over which the rest comes too.
    Zygote(UnixStream),
}

/// What a container keeps of the zygote that it was.
#[derive(Debug)]
struct Origin {
    parts: Parts,
    /// The seccomp filter's bytes; empty for none.
    seccomp: Vec<u8>,
}

/// What a complete container has.
#[derive(Debug)]
struct Known {
    record: Record,
    /// `None` for one that was made of a zygote: it has no mapped ids, no personality and no hooks.
    spec: Option<Spec>,
}

impl Known {
    fn linux(&self) -> Option<&oci_spec::runtime::Linux> {
        self.spec.as_ref()?.linux().as_ref()
    }
}

/// `record.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    pid: u32,
    /// When the process began, in the kernel's ticks: with the pid it names the process for good.
    began: u64,
    started: bool,
    /// The bundle that the container was made from.
    bundle: PathBuf,
}

const RECORD: &str = "record.json";
const BUNDLE: &str = "bundle";
const CONFIG: &str = "config.json";
/// The seccomp filter, if there is one.
const SECCOMP: &str = "seccomp.bpf";
/// libcontainer's socket on which the container's process waits to be started.
const NOTIFY_SOCKET: &str = "notify.sock";

impl Container {
    /// Creates a container from `bundle/config.json`; its process waits for [`Container::start`].
    ///
    /// Shape: the state goes to the folder `root/id`, which must not exist. When: `helper` is unused. Waits until the
    /// container is set up, prestart and createRuntime hooks included. The process is the caller's child.
    ///
    /// # Errors
    /// [`CreateError`]; nothing of the container is left then.
    pub fn create(
        helper: Helper,
        root: &Path,
        id: &str,
        bundle: &Path,
        stdio: Stdio,
    ) -> Result<(Self, Started), CreateError> {
        let spec = spec::read(&bundle.join(CONFIG))?;
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let seccomp = profile.map(Filter::compile).transpose()?;
        Self::create_from(helper, root, id, Blueprint { spec, seccomp, bundle: bundle.to_owned() }, stdio)
    }

    /// The same from what was read already.
    ///
    /// # Errors
    /// [`CreateError`]; nothing of the container is left then.
    pub fn create_from(
        helper: Helper,
        root: &Path,
        id: &str,
        blueprint: Blueprint,
        stdio: Stdio,
    ) -> Result<(Self, Started), CreateError> {
        let id: ContainerId = id.parse().map_err(|error: proto::InvalidId| SpecError::Invalid(error.to_string()))?;
        let folder = root.join(id.as_str());
        let state = |source| CreateError::State { path: folder.clone(), source };
        fs::create_dir_all(root).map_err(state)?;
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CreateError::Exists { id: id.to_string() });
            }
            other => other.map_err(state)?,
        }
        Lock::prepare(&folder).map_err(state)?;
        let mut creation = Creation { id: id.as_str(), folder: &folder, bundle: &blueprint.bundle, init: None };
        creation.run(helper, blueprint.spec, blueprint.seccomp.as_ref(), stdio).inspect_err(|_| {
            let half_made = Self {
                id: id.to_string(),
                folder: folder.clone(),
                known: None,
                cgroup: None,
                gate: None,
                origin: None,
            };
            half_made.discard();
            reap(creation.init);
        })
    }

    /// Finds a container that another process created, also one that was only half made when its creator died.
    ///
    /// # Errors
    /// [`LoadError::NotFound`] when there is none; [`LoadError::State`] when its state cannot be read.
    pub fn load(root: &Path, id: &str) -> Result<Self, LoadError> {
        let not_found = || LoadError::NotFound { id: id.to_owned() };
        let id: ContainerId = id.parse().map_err(|_| not_found())?;
        let folder = root.join(id.as_str());
        if !folder.is_dir() {
            return Err(not_found());
        }
        let path = folder.join(BUNDLE).join(CONFIG);
        // Without its specification nothing was started yet; without its record it was never complete.
        let spec = if path.exists() { spec::read(&path).ok() } else { None };
        let cgroup = match spec.as_ref().and_then(cgroup_path) {
            Some(path) => Some(Cgroup::locate(&path)?),
            None => None,
        };
        let record = read_record(&folder.join(RECORD))?;
        let known = record.zip(spec).map(|(record, spec)| Known { record, spec: Some(spec) });
        Ok(Self { id: id.to_string(), folder, known, cgroup, gate: None, origin: None })
    }

    /// Lets the container's process execute its command. When: once, after creation.
    ///
    /// # Errors
    /// [`StartError::Command`] when the kernel refuses the command (the process ends then); [`StartError::Ended`] when the
    /// process is gone; [`StartError::NotCreated`] when it was started before.
    pub fn start(&mut self) -> Result<(), StartError> {
        let known = self.known.as_mut().filter(|known| !known.record.started).ok_or(StartError::NotCreated)?;
        known.record.started = true;
        match self.gate.take() {
            Some(Gate::Zygote(mut socket)) => {
                socket.write_all(&[LAUNCHING]).map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => StartError::Ended,
                    _ => StartError::Notify(error),
                })?;
                await_launch(socket)?;
            }
            gate => {
                let record = known.record.clone();
                // Before it is true, so that nobody takes a running container for one that was never started.
                write_record(&self.folder.join(RECORD), &record).map_err(StartError::Notify)?;
                notify(&self.folder.join(&self.id)).map_err(|error| match error.kind() {
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => StartError::Ended,
                    _ => StartError::Notify(error),
                })?;
                if let Some(Gate::Libcontainer(launch)) = gate {
                    await_launch(launch)?;
                }
            }
        }
        self.run_hooks("running", |hooks| hooks.poststart().as_ref()).map_err(StartError::Hook)
    }

    /// Starts a further process in the running container.
    ///
    /// Shape: `process.user.username`, if set, is a user as typed, looked up in the container, and takes the place of the
    /// ids. When: the container runs and is not paused; waits until the command is executed. The process is the caller's child.
    ///
    /// # Errors
    /// [`ExecError`]; no process is left then.
    pub fn exec(&self, helper: Helper, process: &Process, stdio: Stdio) -> Result<Started, ExecError> {
        let known = self.known.as_ref().filter(|known| known.record.started).ok_or(ExecError::NotRunning)?;
        let pidfd = open_process(&known.record).ok_or(ExecError::NotRunning)?;
        let cgroup = self.cgroup.as_ref().ok_or(ExecError::NotRunning)?;
        if cgroup.is_frozen() {
            return Err(ExecError::Paused);
        }
        spec::check_process(process)?;
        let mut process = process.clone();
        let limits = HostLimits::of_this_process().map_err(gone)?;
        let root = Root::open(Path::new(&format!("/proc/{}/root", known.record.pid))).map_err(gone)?;
        spec::resolve_user(&mut process, &Accounts::read(&root)?, None)?;
        spec::adjust_process(&mut process, &limits)?;
        let mappings = known.linux().and_then(|linux| linux.uid_mappings().as_ref());
        let outside_id = spec::host_id(process.user().uid(), mappings);
        let (streams, fds, (width, height)) = take_apart(stdio, outside_id);
        let request = ExecRequest {
            process,
            seccomp: self.seccomp_file().map_err(ExecError::Filter)?,
            personality: known.linux().and_then(|linux| linux.personality().clone()),
            namespaces: exec::foreign_namespaces(raw_pid(known.record.pid).ok_or(ExecError::NotRunning)?)
                .map_err(gone)?,
            cgroups: cgroup.folders(),
            streams,
            width,
            height,
        };
        // What was read through the pid so far was this process' only if the process is still there.
        if !is_running(&known.record) {
            return Err(ExecError::NotRunning);
        }
        let (answer, terminal) = helper.ask(&Request::Exec(Box::new(request)), &borrow_all(&pidfd, &fds))?;
        match answer {
            Answer::Started { pid } => Ok(Started { pid, terminal: terminal.into_iter().next() }),
            Answer::Command { error, pid } => {
                reap(pid);
                Err(ExecError::Command(error))
            }
            Answer::Failed { error, pid } => {
                reap(pid);
                // A set-up that fails because the container went away meanwhile is no fault of the set-up.
                if is_running(&known.record) { Err(ExecError::Setup(error)) } else { Err(ExecError::NotRunning) }
            }
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process id of its first process, while its creation was complete.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.known.as_ref().map(|known| known.record.pid)
    }

    /// Whether its first process is alive.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.known.as_ref().is_some_and(|known| is_running(&known.record))
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// [`CgroupError`] when the processes cannot be listed.
    pub fn signal_all(&self, signal: i32) -> Result<(), CgroupError> {
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.signal(signal))
    }

    /// Stops all processes of the container where they are; waits until they are stopped.
    ///
    /// # Errors
    /// [`CgroupError::Freezer`] when that takes too long; the processes then go on.
    pub fn pause(&self) -> Result<(), CgroupError> {
        self.existing_cgroup()?.set_frozen(true)
    }

    /// Lets all processes of the container go on.
    ///
    /// # Errors
    /// [`CgroupError::Freezer`] when that takes too long.
    pub fn resume(&self) -> Result<(), CgroupError> {
        self.existing_cgroup()?.set_frozen(false)
    }

    /// What the container has used so far. When: until it is deleted, also after its process has ended.
    ///
    /// # Errors
    /// [`CgroupError::File`] when the cgroup is gone.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        self.existing_cgroup()?.stats()
    }

    /// Every process of the container.
    ///
    /// # Errors
    /// [`CgroupError::File`] when they cannot be listed.
    pub fn processes(&self) -> Result<Vec<ProcessDetails>, CgroupError> {
        let pids = self.existing_cgroup()?.processes()?;
        processes::describe(&pids).map_err(|source| CgroupError::File { path: "/proc".into(), source })
    }

    /// Changes limits. Shape: what is `None` stays as it is.
    ///
    /// # Errors
    /// [`CgroupError::Limits`] when the kernel refuses one.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.existing_cgroup()?.update(resources)
    }

    /// How many of its processes the kernel has killed for want of memory. When: until it is deleted.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, Cgroup::oom_kills)
    }

    /// Becomes readable when one may be; [`Container::oom_kills`] says whether. See [`Cgroup::oom_events`].
    ///
    /// # Errors
    /// It has no cgroup for memory, or the kernel does not tell.
    pub fn oom_events(&self) -> std::io::Result<(OwnedFd, OomWatch)> {
        self.cgroup.as_ref().ok_or(std::io::ErrorKind::NotFound)?.oom_events()
    }

    /// Removes the container: kills what is left, removes its cgroups and its state, and runs poststop hooks.
    ///
    /// When: at any time with `force`; without, once its process has ended or if it was never started. After an error it
    /// may be loaded and deleted again. Does not reap the process; and since the first process of a pid namespace ends only
    /// when all others in it were reaped, the caller's further processes have to be reaped by somebody meanwhile.
    ///
    /// # Errors
    /// [`DeleteError::Running`] without `force`; otherwise what stands in the way.
    pub fn delete(self, force: bool) -> Result<(), DeleteError> {
        let started = self.known.as_ref().is_some_and(|known| known.record.started);
        if started && !force && self.is_running() {
            return Err(DeleteError::Running);
        }
        let state = |source| DeleteError::State { path: self.folder.clone(), source };
        // Held until all is gone.
        let _lock = Lock::for_removing(&self.folder).map_err(state)?;
        if let Some(cgroup) = &self.cgroup {
            cgroup.empty()?;
            cgroup.remove()?;
        }
        // Source: runtime-spec runtime.md#lifecycle: a failing poststop hook is logged, and the rest goes on.
        if let Err(error) = self.run_hooks("stopped", |hooks| hooks.poststop().as_ref()) {
            tracing::warn!(container = self.id, error = &error as &dyn std::error::Error, "poststop hook failed");
        }
        if let Some(origin) = &self.origin {
            origin.parts.clear();
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(state(error)),
            _ => Ok(()),
        }
    }

    fn existing_cgroup(&self) -> Result<&Cgroup, CgroupError> {
        self.cgroup.as_ref().ok_or_else(|| CgroupError::Path(self.folder.clone()))
    }

    /// Removes what a failed creation left.
    fn discard(mut self) {
        let path = spec::read(&self.folder.join(BUNDLE).join(CONFIG)).ok().as_ref().and_then(cgroup_path);
        self.cgroup = path.and_then(|path| Cgroup::locate(&path).ok());
        let id = self.id.clone();
        if let Err(error) = self.delete(true) {
            tracing::warn!(
                container = id,
                error = &error as &dyn std::error::Error,
                "a failed creation leaves remains"
            );
        }
    }

    fn run_hooks(
        &self,
        status: &str,
        choose: impl Fn(&oci_spec::runtime::Hooks) -> Option<&Vec<Hook>>,
    ) -> Result<(), hooks::HookError> {
        let Some(known) = &self.known else { return Ok(()) };
        let Some(spec) = &known.spec else { return Ok(()) };
        let Some(chosen) = spec.hooks().as_ref().and_then(choose) else { return Ok(()) };
        let state = serde_json::json!({
            "ociVersion": spec.version(),
            "id": self.id,
            "status": status,
            "pid": if status == "stopped" { 0 } else { known.record.pid },
            "bundle": known.record.bundle,
            "annotations": spec.annotations(),
        });
        hooks::run(chosen, &state.to_string())
    }
}

fn cgroup_path(spec: &Spec) -> Option<PathBuf> {
    spec.linux().as_ref()?.cgroups_path().clone()
}

type TakenApart = (Option<Streams>, Vec<OwnedFd>, (u16, u16));

/// What the request says of the streams, the streams themselves, which are given to the process' user, and a terminal's size.
fn take_apart(stdio: Stdio, user_id: u32) -> TakenApart {
    match stdio {
        Stdio::Streams { stdin, stdout, stderr } => {
            let streams = Streams { stdin: stdin.is_some(), stdout: stdout.is_some(), stderr: stderr.is_some() };
            let fds: Vec<OwnedFd> = [stdin, stdout, stderr].into_iter().flatten().collect();
            fds.iter().for_each(|fd| give_to(fd, user_id));
            (Some(streams), fds, (0, 0))
        }
        Stdio::Terminal { width, height } => (None, Vec::new(), (width, height)),
    }
}

fn raw_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn is_running(record: &Record) -> bool {
    Stat::of(record.pid).is_ok_and(|stat| stat.started == record.began && stat.is_alive())
}

/// A handle on the recorded process, if it lives.
fn open_process(record: &Record) -> Option<OwnedFd> {
    let pidfd = pidfd_open(raw_pid(record.pid)?, PidfdFlags::empty()).ok()?;
    // Opened first, checked then: so the handle is that of the recorded process.
    is_running(record).then_some(pidfd)
}

/// A container whose /proc entries cannot be read has ended.
#[allow(clippy::needless_pass_by_value)] // As map_err wants it.
fn gone(error: io::Error) -> ExecError {
    tracing::debug!(%error, "the container went away while a process was to be started in it");
    ExecError::NotRunning
}

/// Reaps a child that failed to become the command; somebody else may have done so already. It has ended or was killed, so
/// this does not wait long.
fn reap(pid: Option<u32>) {
    use rustix::process::{WaitOptions, waitpid};
    let Some(pid) = pid.and_then(raw_pid) else { return };
    for _ in 0..1000 {
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some(_)) | Err(_) => return,
        }
    }
    tracing::warn!(pid = pid.as_raw_nonzero(), "a process of a failed set-up does not end");
}

/// Tells the waiting process to go on. Source: libcontainer, `NotifySocket`, without its change of working directory.
fn notify(folder: &Path) -> io::Result<()> {
    let folder = fs::File::open(folder)?;
    // A short path, since that of the folder may be longer than a socket's address.
    let path = format!("/proc/self/fd/{}/{NOTIFY_SOCKET}", folder.as_fd().as_raw_fd());
    UnixStream::connect(path)?.write_all(b"start container")
}

/// Waits until the command is executed, or not. See [`LAUNCHING`].
fn await_launch(mut launch: impl Read) -> Result<(), StartError> {
    let mut text = Vec::new();
    launch.read_to_end(&mut text).map_err(StartError::Notify)?;
    match text.split_first() {
        None => Err(StartError::Ended),
        Some((&LAUNCHING, [])) => Ok(()),
        Some((_, error)) => {
            Err(serde_json::from_slice::<CommandError>(error).map_or(StartError::Ended, StartError::Command))
        }
    }
}

fn read_record(path: &Path) -> Result<Option<Record>, LoadError> {
    let state = |source| LoadError::State { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| state(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(state(error)),
    }
}

/// Replaces the file as a whole, so that a reader never sees half of it.
fn write_record(path: &Path, record: &Record) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(record)?)?;
    fs::rename(new, path)
}
