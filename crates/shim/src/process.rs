//! Process isolation: a container that shares the host's kernel, by the `container` crate.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use container::rootfs::Upper;
use container::{Container, Helper, Started, Stdio};
use proto::control::Writable;
use proto::{ErrorKind, ProcessDetails, Status};

use crate::bundle::{Bundle, BundleError};
use crate::child::Child;
use crate::compute::{Changes, ComputeSystem, CreateInput, ExecRequest, Process, Update};
use crate::metrics::Usage;
use crate::rootfs::{Places, Rootfs};
use crate::state::Exit;
use crate::stdio::{Fifos, ProcessEnds, Streams};
use crate::terminal::Terminal;
use crate::{clock, lack, parts, shared_binds, spec, terminal};

/// A container on the host's kernel.
pub struct ProcessSystem {
    container: SharedContainer,
    init: Arc<LocalProcess>,
    rootfs: Mutex<Option<Rootfs>>,
    /// To find the container again when a deletion failed half-way.
    state: StatePlace,
    /// Once somebody wants to know: readable when the kernel may have killed a process for want of memory.
    oom_events: tokio::sync::Mutex<Option<lack::Events>>,
}

/// The container, until it is deleted. Its calls wait for files and for a helper process, so they run on blocking threads.
type SharedContainer = Arc<Mutex<Option<Container>>>;

#[derive(Clone)]
struct StatePlace {
    root: PathBuf,
    id: String,
}

/// Turns an error with a kind into what crosses the seam.
macro_rules! status {
    ($error:expr) => {{
        let error = $error;
        Status::from_error(error.kind(), &error)
    }};
}

fn io_status(what: &str, error: &std::io::Error) -> Status {
    Status { kind: ErrorKind::Internal, message: what.to_owned(), causes: vec![error.to_string()] }
}

/// Runs what waits on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::new(ErrorKind::Internal, format!("a worker thread failed: {error}"))))
}

impl ProcessSystem {
    /// Mounts the root file system and creates the container; its first process then waits to be started.
    ///
    /// # Errors
    /// What is wrong with the bundle, the streams, the mounts, the specification or the command; nothing stays.
    pub async fn create(input: CreateInput) -> Result<Self, Status> {
        let CreateInput { id, bundle, container, stdio, rootfs, helper, standby: _ } = input;
        let fifos = Fifos::open(&stdio).await.map_err(|error| status!(error))?;
        let foreign_root = bundle.path().join("rootfs");
        let place = StatePlace { root: bundle.runtime_root(), id: id.to_string() };
        let (streams, pipes) = Streaming::prepare(fifos, stdio.terminal)?;
        let (made_place, made_bundle) = (place.clone(), bundle.clone());
        let (container, rootfs, started) = blocking(move || {
            let of_bundle = |error: BundleError| status!(error);
            let mut spec = bundle.spec().map_err(of_bundle)?;
            spec::without_vsock(&spec)?;
            let rootfs = match container {
                Some(container) => {
                    let Writable::Upper { upper, work, merged, disk } = container.writable else {
                        let what = "process isolation needs an upper folder, not a scratch disk";
                        return Err(Status::new(ErrorKind::InvalidArgument, what));
                    };
                    if spec::set_root(&mut spec, &merged) {
                        bundle.write_spec(&spec).map_err(of_bundle)?;
                    }
                    parts::mount(&container.parts)?;
                    let places = Places { changes: Upper { upper, work }, merged, disk };
                    let staging = bundle.path().join("layers");
                    Rootfs::layers(&container.layers, &staging, &places).map_err(|error| status!(error))?
                }
                None => Rootfs::foreign(&rootfs, &foreign_root).map_err(|error| status!(error))?,
            };
            if shared_binds::bring(&mut spec, bundle.path())? {
                bundle.write_spec(&spec).map_err(of_bundle)?;
            }
            let helper = match helper {
                Some(helper) => helper,
                None => Helper::spawn().map_err(|error| status!(error))?,
            };
            let (width, height) = spec.process().as_ref().map_or((0, 0), terminal::console_size);
            let stdio = pipes.unwrap_or(Stdio::Terminal { width, height });
            let created = Container::create(helper, &place.root, &place.id, bundle.path(), stdio);
            let (container, started) = created.map_err(|error| status!(error))?;
            Ok((container, rootfs, started))
        })
        .await?;
        let container = Arc::new(Mutex::new(Some(container)));
        let init = LocalProcess::adopt(started, streams, Some(Arc::clone(&container)));
        let init = match init {
            Ok(init) => init,
            Err(error) => {
                force_delete(container, made_place).await?;
                return Err(io_status("cannot watch the container's process", &error));
            }
        };
        record(&made_bundle, init.pid());
        let (rootfs, oom_events) = (Mutex::new(Some(rootfs)), tokio::sync::Mutex::default());
        Ok(Self { container, init: Arc::new(init), rootfs, state: made_place, oom_events })
    }

    async fn watch_memory(&self) -> Option<lack::Events> {
        let unwatched = |error| io_status("cannot watch the container's memory", &error);
        let events = self.with(move |container| container.oom_events().map_err(unwatched));
        let events = events.await.and_then(|events| lack::Events::watch(events).map_err(unwatched));
        events.inspect_err(|status| tracing::warn!(%status, "a lack of memory is told with the end only")).ok()
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Container) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let container = Arc::clone(&self.container);
        blocking(move || match container.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
            Some(container) => work(container),
            None => Err(Status::new(ErrorKind::NotFound, "the container is deleted")),
        })
        .await
    }
}

/// Without the record, a crashed shim's container is still found by its cgroup.
fn record(bundle: &Bundle, pid: u32) {
    if let Err(error) = bundle.write_processes(&[pid]) {
        tracing::warn!(%error, "the container's process is not recorded");
    }
}

async fn force_delete(container: SharedContainer, place: StatePlace) -> Result<(), Status> {
    blocking(move || {
        let taken = container.lock().unwrap_or_else(|e| e.into_inner()).take();
        let container = match taken {
            Some(container) => container,
            // An earlier deletion failed after it took the container.
            None => match Container::load(&place.root, &place.id) {
                Ok(container) => container,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(status!(error)),
            },
        };
        container.delete(true).map_err(|error| status!(error))
    })
    .await
}

#[async_trait]
impl ComputeSystem for ProcessSystem {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as Arc<dyn Process>
    }

    async fn start(&self) -> Result<(), Status> {
        self.with(|container| container.start().map_err(|error| status!(error))).await
    }

    async fn exec(&self, exec: ExecRequest) -> Result<Arc<dyn Process>, Status> {
        let ExecRequest { process, stdio } = exec;
        let fifos = Fifos::open(&stdio).await.map_err(|error| status!(error))?;
        let (streams, pipes) = Streaming::prepare(fifos, stdio.terminal)?;
        let started = self
            .with(move |container| {
                let helper = Helper::spawn().map_err(|error| status!(error))?;
                let (width, height) = terminal::console_size(&process);
                let stdio = pipes.unwrap_or(Stdio::Terminal { width, height });
                container.exec(helper, &process, stdio).map_err(|error| status!(error))
            })
            .await?;
        let process = LocalProcess::adopt(started, streams, None);
        Ok(Arc::new(process.map_err(|error| io_status("cannot watch the process", &error))?))
    }

    async fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.with(move |container| container.signal_all(signal).map_err(|error| status!(error))).await
    }

    async fn pause(&self) -> Result<(), Status> {
        self.with(|container| container.pause().map_err(|error| status!(error))).await
    }

    async fn resume(&self) -> Result<(), Status> {
        self.with(|container| container.resume().map_err(|error| status!(error))).await
    }

    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status> {
        self.with(|container| container.processes().map_err(|error| status!(error))).await
    }

    async fn stats(&self) -> Result<Usage, Status> {
        let usage = |stats| Usage::Host(Box::new(stats));
        self.with(move |container| container.stats().map(usage).map_err(|error| status!(error))).await
    }

    async fn update(&self, update: Update) -> Result<(), Status> {
        let Update::Limits(resources) = update else {
            return Err(Status::new(ErrorKind::NotImplemented, "a process container's network is its namespace's"));
        };
        self.with(move |container| container.update(&resources).map_err(|error| status!(error))).await
    }

    async fn oom_kills_after(&self, seen: u64) -> Option<u64> {
        let mut events = self.oom_events.lock().await;
        if events.is_none() {
            *events = self.watch_memory().await;
        }
        let kills = || self.with(|container| Ok(container.oom_kills()));
        events.as_ref()?.kills_after(seen, kills).await.ok()
    }

    async fn delete(&self, _: Changes) -> Result<(), Status> {
        let deleted = force_delete(Arc::clone(&self.container), self.state.clone());
        let rootfs = self.rootfs.lock().unwrap_or_else(|e| e.into_inner()).take();
        let unmounted = async {
            match rootfs {
                Some(rootfs) => blocking(move || rootfs.unmount().map_err(|error| status!(error))).await,
                None => Ok(()),
            }
        };
        // Both wait for the kernel most of the time. The container's processes have mounts of their own.
        let (deleted, unmounted) = tokio::join!(deleted, unmounted);
        deleted.and(unmounted)
    }
}

/// A process's streams before it exists.
enum Streaming {
    /// It inherits pipes; this is what we keep.
    Pipes(Streams),
    /// To be connected to its terminal.
    Terminal(Fifos),
}

impl Streaming {
    fn prepare(fifos: Fifos, terminal: bool) -> Result<(Self, Option<Stdio>), Status> {
        if terminal {
            return Ok((Self::Terminal(fifos), None));
        }
        let pipes = fifos.pipe().map_err(|error| io_status("cannot make the process's streams", &error));
        let (inherited, streams) = pipes?;
        let stdio = Stdio::Streams { stdin: inherited.stdin, stdout: inherited.stdout, stderr: inherited.stderr };
        Ok((Self::Pipes(streams), Some(stdio)))
    }
}

/// A process of this host, and a child of ours.
struct LocalProcess {
    child: Child,
    terminal: Option<Terminal>,
    streams: Streams,
    /// Of a container's first process: who to ask for kills for want of memory.
    container: Option<SharedContainer>,
}

impl LocalProcess {
    fn adopt(started: Started, streaming: Streaming, container: Option<SharedContainer>) -> std::io::Result<Self> {
        let child = Child::adopt(started.pid)?;
        let (terminal, streams) = match (streaming, started.terminal) {
            (Streaming::Pipes(streams), _) => {
                streams.process_started();
                (None, streams)
            }
            (Streaming::Terminal(fifos), Some(master)) => {
                let terminal = Terminal::new(master)?;
                let ends = ProcessEnds {
                    stdin: Some(Box::pin(terminal.clone())),
                    stdout: Some(Box::pin(terminal.clone())),
                    stderr: None,
                };
                (Some(terminal), fifos.copy(ends)?)
            }
            (Streaming::Terminal(_), None) => {
                return Err(std::io::Error::other("the process came without its terminal"));
            }
        };
        Ok(Self { child, terminal, streams, container })
    }

    async fn oom_kills(&self) -> u64 {
        let Some(container) = self.container.clone() else { return 0 };
        let asked = blocking(move || {
            let container = container.lock().unwrap_or_else(|e| e.into_inner());
            Ok(container.as_ref().map_or(0, Container::oom_kills))
        });
        asked.await.unwrap_or(0)
    }
}

#[async_trait]
impl Process for LocalProcess {
    fn pid(&self) -> u32 {
        self.child.pid()
    }

    async fn signal(&self, signal: i32) -> Result<(), Status> {
        self.child.signal(signal).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Status::new(ErrorKind::NotFound, "process already finished"),
            Some(libc::EINVAL) => Status::new(ErrorKind::InvalidArgument, format!("{signal} is no signal")),
            _ => io_status("cannot signal the process", &error),
        })
    }

    async fn resize(&self, width: u32, height: u32) -> Result<(), Status> {
        let terminal = self.terminal.as_ref();
        let terminal =
            terminal.ok_or_else(|| Status::new(ErrorKind::FailedPrecondition, "the process has no terminal"))?;
        terminal.resize(width, height).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => {
                Status::new(ErrorKind::InvalidArgument, format!("{width}x{height} is no terminal size"))
            }
            _ => io_status("cannot resize the terminal", &error),
        })
    }

    fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    async fn exited(&self) -> Exit {
        match self.child.exit().await {
            Ok(code) => {
                let at_ns = clock::now_ns();
                Exit { code, at_ns, oom_kills: self.oom_kills().await, error: None }
            }
            Err(error) => Exit::unseen(format!("cannot wait for the process: {error}")),
        }
    }

    async fn output_complete(&self) {
        self.streams.complete().await;
    }
}
