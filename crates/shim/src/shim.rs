//! What one shim process owns: its bundle, its task, or a group's tasks, and its own end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task as message;
use proto::{ContainerId, ErrorKind, Isolation, Status};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::compute::{Changes, ComputeSystem, CreateInput};
use crate::events::{Event, Publisher};
use crate::foreign::{self, Foreign, Options, Part, Prepared};
use crate::hyperv::HypervSystem;
use crate::pod::{PodContainer, PodVm, Sandbox};
use crate::presence::{Asker, Presence};
use crate::process::ProcessSystem;
use crate::reserve::{Caller, Order, Successor};
use crate::rest::Rest;
use crate::standby::Standby;
use crate::state::Exit;
use crate::stdio::{Owner, StdinEnd, StdioPaths};
use crate::task::Task;
use crate::{sys, systemd};

/// Far more than a pod has: each has descriptors and threads of the one shim.
const MOST_TASKS: usize = 512;

/// Everything of one shim process.
pub struct Shim {
    bundle: Bundle,
    publisher: Publisher,
    /// Spawned before the first request, so that Create does not pay for its exec.
    warm_helper: SyncMutex<Option<container::Helper>>,
    standby: SyncMutex<Option<Standby>>,
    /// See [`Calling`].
    isolation: Option<Isolation>,
    /// Our engine wrote the bundle. Known with the Create request: the engine may still write while this process starts.
    is_engines: AtomicBool,
    /// See [`Calling`].
    is_group: bool,
    /// See [`Calling`].
    caller: Option<Caller>,
    /// Whether that is there.
    containerd: Presence,
    /// What stands by for the next container.
    successor: Arc<Successor>,
    /// The VM of the pod that it serves, if that has one.
    pod: SyncMutex<Option<Arc<PodVm>>>,
    tasks: Mutex<Tasks>,
    /// Every request for a task disturbs it.
    pub rest: Rest,
    /// The last task was deleted, or did not come to be.
    emptied: Notify,
    ended: CancellationToken,
}

/// What was made before the first request, so that Create need not wait for it. All of it may be missing.
#[derive(Default)]
pub struct Ready {
    /// Waits to create a process container.
    pub helper: Option<container::Helper>,
    /// Waits for a hyperv container.
    pub standby: Option<Standby>,
}

/// How a shim was called.
#[derive(Debug, Default, Clone)]
pub struct Calling {
    /// The wall that the runtime's name asks a foreign containerd's containers to have.
    pub isolation: Option<Isolation>,
    /// It serves all containers of a group.
    pub is_group: bool,
    /// The foreign containerd; none for our engine, which keeps its standbys itself.
    pub caller: Option<Caller>,
}

#[derive(Default)]
struct Tasks {
    slots: HashMap<String, Slot>,
    /// Nothing more is created.
    closed: bool,
}

/// The place for a task.
enum Slot {
    /// Held for the time of a Create, so that a second one is refused at once.
    Reserved,
    Full(Arc<Task>),
}

impl Shim {
    /// A shim without a task. When: within the runtime.
    #[must_use]
    pub fn new(bundle: Bundle, publisher: Publisher, ready: Ready, calling: Calling) -> Arc<Self> {
        Arc::new(Self {
            bundle,
            publisher,
            warm_helper: SyncMutex::new(ready.helper),
            standby: SyncMutex::new(ready.standby),
            isolation: calling.isolation,
            containerd: Presence::of(calling.caller.as_ref().and_then(|caller| caller.events.as_deref())),
            is_engines: AtomicBool::new(false),
            is_group: calling.is_group,
            caller: calling.caller,
            successor: Arc::default(),
            pod: SyncMutex::default(),
            tasks: Mutex::default(),
            rest: Rest::default(),
            emptied: Notify::new(),
            ended: CancellationToken::new(),
        })
    }

    /// True when our engine wrote the bundle. When: there is a task, or one is being made.
    #[must_use]
    pub fn is_engines(&self) -> bool {
        self.is_engines.load(Ordering::Relaxed)
    }

    /// What ends a process's input: our engine says so, a foreign containerd's clients may just close it.
    #[must_use]
    pub fn stdin_end(&self) -> StdinEnd {
        if self.is_engines() { StdinEnd::Request } else { StdinEnd::Writer }
    }

    /// Whose output a process's streams carry.
    #[must_use]
    pub fn owner(&self, container: &str) -> Owner {
        Owner { namespace: self.publisher.namespace().to_owned(), container: container.to_owned() }
    }

    /// The task of that identifier.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn task(&self, id: &str) -> Result<Arc<Task>, Status> {
        self.rest.disturb();
        match self.tasks.lock().await.slots.get(id) {
            Some(Slot::Full(task)) => Ok(Arc::clone(task)),
            Some(Slot::Reserved) | None => {
                let id: String = id.chars().take(100).collect();
                Err(Status::new(ErrorKind::NotFound, format!("container {id} not found")))
            }
        }
    }

    /// True while a task exists or is being made.
    pub async fn is_busy(&self) -> bool {
        !self.tasks.lock().await.slots.is_empty()
    }

    /// Creates the container. Answers its first process's id. Nothing of it stays when it fails.
    ///
    /// # Errors
    /// `Unavailable` when containerd has ended meanwhile; `AlreadyExists` when the shim has a task, or has that one if it serves a group; `FailedPrecondition` when it is about to end;
    /// what the bundle, the streams or the compute system say.
    pub async fn create(&self, request: CreateTaskRequest) -> Result<u32, Status> {
        self.rest.disturb();
        let id = request.id.clone();
        let asker = self.containerd.asker();
        self.reserve(&id).await?;
        let created = self.create_task_for(&asker, request).await;
        let mut tasks = self.tasks.lock().await;
        match created {
            Ok((task, pid)) => {
                tasks.slots.insert(id, Slot::Full(task));
                Ok(pid)
            }
            Err(status) => {
                tasks.slots.remove(&id);
                if tasks.slots.is_empty() {
                    self.emptied.notify_one();
                }
                Err(status)
            }
        }
    }

    async fn reserve(&self, id: &str) -> Result<(), Status> {
        let mut tasks = self.tasks.lock().await;
        if tasks.closed {
            return Err(Status::new(ErrorKind::FailedPrecondition, "this shim is about to end"));
        }
        if tasks.slots.contains_key(id) || !(self.is_group || tasks.slots.is_empty()) {
            return Err(Status::new(ErrorKind::AlreadyExists, "this shim has a container already"));
        }
        if tasks.slots.len() >= MOST_TASKS {
            return Err(Status::new(
                ErrorKind::ResourceExhausted,
                format!("a shim has {MOST_TASKS} containers at most"),
            ));
        }
        tasks.slots.insert(id.to_owned(), Slot::Reserved);
        Ok(())
    }

    /// Nobody would ever delete what is made for a containerd that has ended.
    async fn create_task_for(&self, asker: &Asker, request: CreateTaskRequest) -> Result<(Arc<Task>, u32), Status> {
        let gone = || Status::new(ErrorKind::Unavailable, "the containerd that asked for the container has ended");
        if asker.is_gone() {
            return Err(gone());
        }
        let (task, pid) = self.create_task(request).await?;
        if asker.is_gone() {
            discard(&task).await;
            return Err(gone());
        }
        Ok((task, pid))
    }

    async fn create_task(&self, request: CreateTaskRequest) -> Result<(Arc<Task>, u32), Status> {
        let invalid = |what: String| Status::new(ErrorKind::InvalidArgument, what);
        let id: ContainerId = request.id.parse().map_err(|error| invalid(format!("{error}")))?;
        if !request.checkpoint.is_empty() {
            return Err(Status::new(ErrorKind::NotImplemented, "checkpoints are not supported"));
        }
        let of_bundle = |error: crate::bundle::BundleError| Status::from_error(error.kind(), &error);
        let bundle =
            if request.bundle.is_empty() { self.bundle.clone() } else { Bundle::at(request.bundle.clone().into()) };
        bundle.forget_exit_report().map_err(of_bundle)?;
        let container = bundle.container().map_err(of_bundle)?;
        self.is_engines.store(container.is_some(), Ordering::Relaxed);
        let scope = if container.is_some() { None } else { systemd::place(&bundle).await? };
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            stdin_end: self.stdin_end(),
            owner: self.owner(&request.id),
        };
        // Held until the container has them.
        let mut files = Vec::new();
        let mut order = None;
        let (part, container) = match container {
            Some(container) => (Part::Alone, Some(container)),
            None => match self.prepare_foreign(&bundle, &id, &request).await? {
                Some((prepared, options)) => {
                    files = prepared.files;
                    order = self.caller.clone().map(|caller| Order { caller, options });
                    (prepared.part, Some(prepared.container))
                }
                None => (Part::Alone, None),
            },
        };
        let isolation = container.as_ref().map_or(Isolation::Process, |container| container.isolation);
        let helper = self.warm_helper.lock().unwrap_or_else(|e| e.into_inner()).take();
        let standby = self.standby.lock().unwrap_or_else(|e| e.into_inner()).take();
        let input = CreateInput {
            id: id.clone(),
            bundle: bundle.clone(),
            container,
            stdio: stdio.clone(),
            rootfs: request.rootfs.clone(),
            helper,
            standby,
        };
        let system: Box<dyn ComputeSystem> = match isolation {
            Isolation::Process => Box::new(ProcessSystem::create(input).await?),
            Isolation::Hyperv => self.create_in_vm(part, input, order).await?,
        };
        drop(files);
        let pid = system.init().pid();
        if let Some(Err(error)) = scope.map(|scope| scope.pass_to(pid)) {
            tracing::warn!(%error, "systemd takes the container's scope for ended");
        }
        self.publisher.publish(&create_event(request, pid));
        let task = Task::new(id, bundle, system, stdio, self.publisher.clone());
        sys::trim_heap();
        Ok((task, pid))
    }

    /// What our engine would say of a foreign containerd's container; `None` for process isolation, which needs no more than
    /// the bundle has.
    async fn prepare_foreign(
        &self,
        bundle: &Bundle,
        id: &ContainerId,
        request: &CreateTaskRequest,
    ) -> Result<Option<(Prepared, Options)>, Status> {
        let options = Options::read(request.options.as_ref())?;
        let spec = bundle.spec().map_err(|error| Status::from_error(error.kind(), &error))?;
        if options.isolation(self.isolation, &spec)? == Isolation::Process {
            return Ok(None);
        }
        let (bundle, id, namespace) = (bundle.clone(), id.to_string(), self.publisher.namespace().to_owned());
        let mounts = request.rootfs.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let foreign = Foreign { namespace: &namespace, id: &id, mounts: &mounts, options: &options };
            foreign::prepare(&bundle, &foreign).map(|prepared| (prepared, options))
        });
        let prepared = prepared.await.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
        prepared.map(Some)
    }

    /// Shape: `order` is what the next container is to have stand by, if that pays.
    async fn create_in_vm(
        &self,
        part: Part,
        input: CreateInput,
        order: Option<Order>,
    ) -> Result<Box<dyn ComputeSystem>, Status> {
        let pod = || self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        match (part, &input.container) {
            (Part::Sandbox, Some(container)) => {
                let (sandbox, vm) = Sandbox::create(&input.bundle, container).await?;
                *pod() = Some(vm);
                Ok(Box::new(sandbox))
            }
            (Part::Member, _) => {
                let vm = pod().clone();
                let vm = vm.ok_or_else(|| {
                    Status::new(ErrorKind::FailedPrecondition, "the container's pod has no sandbox here")
                })?;
                Ok(Box::new(PodContainer::create(&vm, input).await?))
            }
            _ => {
                let system = HypervSystem::create(input).await?;
                if let Some(order) = order
                    && let Some(kind) = order.options.pays_to_stand_by(system.accelerator())
                {
                    self.successor.order(order, kind);
                }
                Ok(Box::new(system))
            }
        }
    }

    /// Starts a container, or a further process of it. Answers its process id.
    ///
    /// # Errors
    /// What [`Shim::task`] and [`Task::start`] say.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let pid = self.task(id).await?.start(exec_id).await?;
        if exec_id.is_empty() {
            self.successor.started();
        }
        Ok(pid)
    }

    /// Gives the container back and forgets it.
    ///
    /// # Errors
    /// What [`Task::delete`] says; then the task stays.
    pub async fn delete(&self, id: &str) -> Result<(u32, Exit), Status> {
        // What a container of a foreign containerd has changed behind the hyperv wall ends with its task: no snapshot sees it.
        let changes = if self.is_engines() { Changes::Kept } else { Changes::Discarded };
        let task = self.task(id).await?;
        // Whoever deletes may end this shim next. It takes less time than the container's end.
        let (deleted, ()) = tokio::join!(task.delete(changes), self.successor.hand_out());
        let deleted = deleted?;
        let mut tasks = self.tasks.lock().await;
        tasks.slots.remove(id);
        if tasks.slots.is_empty() {
            self.emptied.notify_one();
        }
        Ok(deleted)
    }

    /// Ends the shim when it has no task. What happened is told before this returns: who has asked for the end takes a shim for
    /// dead from then on, and has what is left of it killed.
    ///
    /// With `now` in any case: what runs is killed, and the container is deleted without a thought for its changes. For a
    /// container that is removed when it ends that is the quick way: it needs no Delete before.
    pub async fn shut_down(&self, now: bool) {
        let tasks = {
            let mut tasks = self.tasks.lock().await;
            let being_made = tasks.slots.values().any(|slot| matches!(slot, Slot::Reserved));
            if being_made || !(now || tasks.slots.is_empty()) {
                return;
            }
            tasks.closed = true;
            std::mem::take(&mut tasks.slots)
        };
        for slot in tasks.into_values() {
            if let Slot::Full(task) = slot {
                discard(&task).await;
            }
        }
        self.publisher.flush().await;
        self.ended.cancel();
    }

    /// Waits until the last task is deleted, or has not come to be.
    pub async fn emptied(&self) {
        self.emptied.notified().await;
    }

    /// Waits for [`Shim::shut_down`].
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

async fn discard(task: &Arc<Task>) {
    if task.kill("", libc::SIGKILL, false).await.is_ok() {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), task.wait("")).await;
    }
    if let Err(error) = task.delete(Changes::Discarded).await {
        tracing::error!(%error, id = %task.id(), "the container is left behind");
    }
}

fn create_event(request: CreateTaskRequest, pid: u32) -> Event {
    let io = message::TaskIO {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        ..Default::default()
    };
    Event::Create(message::TaskCreate {
        container_id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        io: Some(io).into(),
        pid,
        ..Default::default()
    })
}
