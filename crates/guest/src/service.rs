//! The `Guest` service of `proto::gcs`, over the control substreams.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use async_trait::async_trait;
use container::rootfs::LayerSource;
use futures_util::StreamExt;
use proto::gcs::INIT_PROCESS;
use proto::gcs::wire::{
    self, ConfigureNetworkRequest, CreateContainerRequest, CreateContainerResponse, Empty, ExecRequest, ExecResponse,
    MountRootRequest, PersonalizeRequest, PersonalizeResponse, ProcessEntry, ProcessesResponse, RenewRequest,
    ResizeRequest, SignalRequest, StartRequest, StatsResponse, SyncClockRequest, SyncClockResponse, UpdateRequest,
    WaitRequest, WaitResponse,
};
use proto::gcs::wire_ttrpc::{Guest, create_guest};
use proto::{ErrorKind, ProcessDetails, Status};
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::archive::{self, FilesOwner, MountedFiles};
use crate::compute::{self, Compute, ComputeError};
use crate::identity::{self, IdentityFiles};
use crate::machine::Machine;
use crate::name_files;
use crate::network::Network;
use crate::port::Port;
use crate::process::{Attendants, Process, TerminalSize};
use crate::reaper::Reaper;
use crate::shares::{SharedMount, Shares};
use crate::stream_thread::StreamThread;
use crate::substreams::{self, Destinations, Substreams};

const SIGKILL: i32 = 9;

/// The service, ready for the host's first byte. It is made before the freeze point, so that no fork makes it.
pub struct Ready {
    substreams: Substreams,
    destinations: Destinations,
    /// Dropping it would end the connections.
    _server: Server,
}

impl Ready {
    /// Makes everything that serving needs and that a fork can take as it is.
    pub async fn prepare(machine: Machine, network: Network) -> anyhow::Result<Self> {
        let (control, controls) = mpsc::unbounded_channel();
        let incoming = futures_util::stream::unfold(controls, async |mut controls| {
            let stream = controls.recv().await?;
            Some((std::io::Result::Ok(stream), controls))
        });
        let (files, files_wanted) = mpsc::unbounded_channel();
        let substreams = Substreams::default();
        let life = Arc::new(Mutex::new(Life::Blank(machine)));
        tokio::spawn(archive::serve_all(files_wanted, Arc::clone(&life) as Arc<dyn FilesOwner>));
        let service = GuestService {
            life,
            shared: AtomicBool::new(false),
            network: Mutex::new(network),
            identity: IdentityFiles::open().context("cannot open the identity's files")?,
            substreams: substreams.clone(),
            attendants: Attendants {
                reaper: Reaper::spawn().context("cannot watch for processes that end")?,
                streams: StreamThread::spawn().context("no thread for the streams of processes")?,
            },
        };
        let listener = Listener::new(incoming.boxed());
        let mut server = Server::new().add_listener(listener).register_service(create_guest(Arc::new(service)));
        server.start().await.context("cannot serve")?;
        // Lets the tasks that were just made run up to where they wait.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        Ok(Self { substreams, destinations: Destinations { control, files }, _server: server })
    }

    /// Serves the host until it closes the port.
    pub async fn serve(self, port: Port) -> anyhow::Result<()> {
        let driven = substreams::drive(port, &self.substreams, self.destinations).await;
        driven.context("the connection to the host broke")
    }
}

/// Where the guest is in its life. It has one, and one more after each rehearsal.
///
/// ```text
///   ┌─────────────────────────┬── Renew, of a rehearsal only ──┐
///   ▼                         │                                │
/// Blank ──Personalize──▶ Personalized ──CreateContainer──▶ Container ──Shutdown──▶ Over
///                             ├── MountRoot ──▶ Mounted ───────────────Shutdown─────▲
///                             └── Shutdown; CreateContainer, MountRoot or Renew fails
/// ```
///
/// In `Container` and in `Mounted` the container's files can be read and written.
enum Life {
    Blank(Machine),
    Personalized { machine: Machine, rehearsal: bool },
    Container { compute: Box<Compute>, rehearsal: bool },
    Mounted(Box<MountedFiles>),
    Over,
}

/// What a rehearsal has come to when it is taken out of the guest's life.
enum Rehearsed {
    Nothing(Machine),
    Container(Box<Compute>),
}

impl Life {
    /// Ends a rehearsal, and nothing else: the life is over until the guest is blank again.
    fn take_rehearsal(&mut self) -> Result<Rehearsed, Status> {
        match std::mem::replace(self, Self::Over) {
            Self::Personalized { machine, rehearsal: true } => Ok(Rehearsed::Nothing(machine)),
            Self::Container { compute, rehearsal: true } => Ok(Rehearsed::Container(compute)),
            other => {
                *self = other;
                Err(out_of_order("the guest is not in a rehearsal"))
            }
        }
    }
}

impl FilesOwner for Mutex<Life> {
    fn layers(&self) -> Result<Vec<LayerSource>, Status> {
        match &*lock(self) {
            Life::Container { compute, .. } => Ok(compute.layers().to_vec()),
            Life::Mounted(files) => Ok(files.layers().to_vec()),
            Life::Blank(_) | Life::Personalized { .. } | Life::Over => {
                Err(out_of_order("no container's files are here"))
            }
        }
    }

    fn shared(&self) -> Vec<SharedMount> {
        match &*lock(self) {
            Life::Container { compute, .. } => compute.shared().to_vec(),
            Life::Blank(_) | Life::Personalized { .. } | Life::Mounted(_) | Life::Over => Vec::new(),
        }
    }

    fn first_process(&self) -> Option<u32> {
        let Life::Container { compute, .. } = &*lock(self) else { return None };
        compute.process(INIT_PROCESS).ok().map(|process| process.pid())
    }

    fn set_frozen(&self, frozen: bool) -> Result<bool, Status> {
        let Life::Container { compute, .. } = &*lock(self) else { return Ok(false) };
        let set = if frozen { compute.container().pause() } else { compute.container().resume() };
        set.map(|()| true).map_err(|error| Status::from_error(error.kind(), &error))
    }
}

struct GuestService {
    life: Arc<Mutex<Life>>,
    /// The container has folders of the host.
    shared: AtomicBool,
    network: Mutex<Network>,
    identity: IdentityFiles,
    substreams: Substreams,
    attendants: Attendants,
}

fn lock(life: &Mutex<Life>) -> MutexGuard<'_, Life> {
    life.lock().unwrap_or_else(PoisonError::into_inner)
}

fn out_of_order(message: &str) -> Status {
    Status::new(ErrorKind::FailedPrecondition, message)
}

fn failed(error: &ComputeError) -> Status {
    Status::from_error(error.kind(), error)
}

impl GuestService {
    fn take_identity(&self, request: &PersonalizeRequest) -> Result<PersonalizeResponse, Status> {
        let mut life = lock(&self.life);
        if !matches!(*life, Life::Blank(_)) {
            return Err(out_of_order("the guest has its identity already"));
        }
        if request.version != proto::gcs::VERSION {
            return Ok(PersonalizeResponse { version: proto::gcs::VERSION, ..Default::default() });
        }
        let response = self.identity.take(request).map_err(|error| Status::from_error(error.kind(), &error))?;
        self.set_network(&request.network)?;
        if let Life::Blank(machine) = std::mem::replace(&mut *life, Life::Over) {
            *life = Life::Personalized { machine, rehearsal: request.rehearsal };
        }
        Ok(response)
    }

    fn set_network(&self, wanted: &wire::Network) -> Result<(), Status> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.make(wanted).map_err(|error| Status::from_error(error.kind(), &error))
    }

    /// Changes the network of the container, and the files that tell it of names.
    async fn change_network(&self, request: ConfigureNetworkRequest) -> Result<(), Status> {
        let first = self.with_container(|compute| compute.process(INIT_PROCESS).map_err(|error| failed(&error)));
        let first = first.await?.pid();
        self.set_network(&request.network)?;
        let written = self.aside(move || name_files::write(first, &request.files)).await?;
        written.map_err(|error| Status::from_error(error.kind(), &error))
    }

    async fn create(&self, request: &CreateContainerRequest) -> Result<u32, Status> {
        self.require_personalized()?;
        let mut streams = self.substreams.claim(INIT_PROCESS).await;
        if !request.stdin {
            streams.stdin = None;
        }
        self.require_personalized()?;
        let shares = self.substreams.claim_shares(request.shares).await;
        let life = std::mem::replace(&mut *lock(&self.life), Life::Over);
        let Life::Personalized { machine, rehearsal } = life else {
            return Err(out_of_order("the guest has had its container already"));
        };
        if u32::try_from(shares.len()) != Ok(request.shares) {
            return Err(Status::new(ErrorKind::InvalidArgument, "the host's folders have no substreams"));
        }
        self.shared.store(!shares.is_empty(), Ordering::SeqCst);
        let shares = Shares::mount(shares).map_err(|error| failed(&ComputeError::Share(error)))?;
        let (attendants, request) = (self.attendants.clone(), request.clone());
        if self.shared.load(Ordering::SeqCst) {
            attendants.reaper.remember();
        }
        let made = self.aside(move || Compute::create(&request, streams, shares, machine, &attendants));
        let compute = made.await?.map_err(|error| failed(&error))?;
        let first = compute.process(INIT_PROCESS).map_err(|error| failed(&error))?;
        *lock(&self.life) = Life::Container { compute: Box::new(compute), rehearsal };
        let shared = self.shared.load(Ordering::SeqCst);
        tokio::spawn(kill_the_rest(Arc::clone(&self.life), Arc::clone(&first), shared));
        Ok(first.pid())
    }

    /// Does what may wait for the container's files, or for somebody who does. When these are the host's, this very thread
    /// fetches them, so another one waits.
    async fn aside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        if !self.shared.load(Ordering::SeqCst) {
            return Ok(act());
        }
        let done = tokio::task::spawn_blocking(act).await;
        done.map_err(|error| Status::new(ErrorKind::Internal, format!("the work broke off: {error}")))
    }

    fn mount(&self, request: &MountRootRequest) -> Result<(), Status> {
        self.require_personalized()?;
        let mut life = lock(&self.life);
        let Life::Personalized { machine, .. } = std::mem::replace(&mut *life, Life::Over) else {
            return Err(out_of_order("the guest has had its container already"));
        };
        let mounted = MountedFiles::mount(request, machine).map_err(|error| failed(&error))?;
        *life = Life::Mounted(Box::new(mounted));
        Ok(())
    }

    fn require_personalized(&self) -> Result<(), Status> {
        match &*lock(&self.life) {
            Life::Personalized { .. } => Ok(()),
            Life::Blank(_) => Err(out_of_order("the guest has no identity yet")),
            Life::Container { .. } | Life::Mounted(_) | Life::Over => {
                Err(out_of_order("the guest has had its container already"))
            }
        }
    }

    /// Does something with the container, if there is one.
    async fn with_container<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Compute) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let life = Arc::clone(&self.life);
        let done = self.aside(move || match &mut *lock(&life) {
            Life::Container { compute, .. } => act(compute),
            Life::Blank(_) => Err(out_of_order("the guest has no identity yet")),
            Life::Personalized { .. } => Err(out_of_order("there is no container yet")),
            Life::Mounted(_) => Err(out_of_order("there are a container's files, and no container")),
            Life::Over => Err(out_of_order("the container is gone")),
        });
        done.await?
    }

    async fn exec(&self, request: &ExecRequest) -> Result<u32, Status> {
        if request.process == INIT_PROCESS {
            return Err(Status::new(ErrorKind::InvalidArgument, "process 0 is the container's first process"));
        }
        self.with_container(|_| Ok(())).await?;
        let mut streams = self.substreams.claim(request.process).await;
        if !request.stdin {
            streams.stdin = None;
        }
        let (request, attendants) = (request.clone(), self.attendants.clone());
        let shared = self.shared.load(Ordering::SeqCst);
        let started = self.with_container(move |compute| {
            if shared {
                attendants.reaper.remember();
            }
            compute.exec(&request, streams, &attendants).map_err(|error| failed(&error))
        });
        let started = started.await;
        let life = Arc::clone(&self.life);
        let warm_up = move || {
            if let Life::Container { compute, .. } = &mut *lock(&life) {
                compute.warm_up();
            }
        };
        if shared {
            tokio::task::spawn_blocking(warm_up);
        } else {
            tokio::spawn(async move {
                // After the answer, which the host waits for.
                tokio::task::yield_now().await;
                warm_up();
            });
        }
        started
    }

    async fn wait_for(&self, number: u32) -> Result<WaitResponse, Status> {
        let process = self.with_container(move |compute| compute.process(number).map_err(|error| failed(&error)));
        let exit = process.await?.finished().await;
        let told = self.with_container(move |compute| {
            // Only the container's own end says anything about it.
            if number == INIT_PROCESS {
                return Ok(compute.container().oom_kills() > 0);
            }
            compute.forget(number);
            Ok(false)
        });
        let oom_killed = told.await.unwrap_or_default();
        Ok(WaitResponse { exit_code: exit.code, exited_at_ns: exit.at_ns, oom_killed, ..Default::default() })
    }

    async fn send_signal(&self, request: SignalRequest) -> Result<(), Status> {
        let sent = self.with_container(move |compute| {
            if !request.all {
                return compute.signal(request.process, request.signal).map_err(|error| failed(&error));
            }
            let signal = i32::try_from(request.signal).unwrap_or_default();
            compute.container().signal_all(signal).map_err(|error| Status::from_error(error.kind(), &error))
        });
        sent.await
    }

    async fn resize_terminal(&self, request: ResizeRequest) -> Result<(), Status> {
        let clamp = |characters: u32| u16::try_from(characters).unwrap_or(u16::MAX);
        let size = TerminalSize { width: clamp(request.width), height: clamp(request.height) };
        let resized = self.with_container(move |compute| {
            let number = request.process;
            let process = compute.process(number).map_err(|error| failed(&error))?;
            let resized = process.resize(size);
            resized.map_err(|source| failed(&ComputeError::Kernel { what: "resize the terminal of", number, source }))
        });
        resized.await
    }

    async fn list_processes(&self) -> Result<ProcessesResponse, Status> {
        let processes = self.with_container(|compute| {
            compute.container().processes().map_err(|error| Status::from_error(error.kind(), &error))
        });
        let processes = processes.await?;
        Ok(ProcessesResponse { processes: processes.into_iter().map(entry).collect(), ..Default::default() })
    }

    async fn measure(&self) -> Result<StatsResponse, Status> {
        let stats = self.with_container(|compute| {
            compute.container().stats().map_err(|error| Status::from_error(error.kind(), &error))
        });
        let stats = stats.await?;
        Ok(StatsResponse {
            cpu_ns: stats.cpu.total_ns,
            cpu_user_ns: stats.cpu.user_ns,
            cpu_kernel_ns: stats.cpu.kernel_ns,
            memory_bytes: stats.memory.usage_bytes,
            memory_peak_bytes: stats.memory.peak_bytes,
            memory_limit_bytes: stats.memory.limit_bytes.unwrap_or_default(),
            memory_inactive_file_bytes: stats.memory.inactive_file_bytes,
            pids: stats.pids.current,
            pids_limit: stats.pids.limit.unwrap_or_default(),
            block_read_bytes: stats.block.iter().map(|device| device.read_bytes).sum(),
            block_write_bytes: stats.block.iter().map(|device| device.write_bytes).sum(),
            ..Default::default()
        })
    }

    async fn change_limits(&self, request: &UpdateRequest) -> Result<(), Status> {
        let resources = serde_json::from_slice(&request.resources)
            .map_err(|error| Status::new(ErrorKind::InvalidArgument, format!("invalid resources: {error}")))?;
        let updated = self.with_container(move |compute| {
            compute.container().update(&resources).map_err(|error| Status::from_error(error.kind(), &error))
        });
        updated.await
    }

    async fn end(&self) -> Result<(), Status> {
        let life = Arc::clone(&self.life);
        let killed = self.aside(move || match &*lock(&life) {
            Life::Blank(_) => Err(out_of_order("the guest has no identity yet")),
            Life::Personalized { .. } | Life::Mounted(_) | Life::Over => Ok(None),
            Life::Container { compute, .. } => kill(compute).map(Some),
        });
        if let Some(first) = killed.await?? {
            first.ended().await;
        }
        let life = Arc::clone(&self.life);
        let removed = self.aside(move || {
            let life = std::mem::replace(&mut *lock(&life), Life::Over);
            match life {
                Life::Container { compute, .. } => compute.remove().map(drop).map_err(|error| failed(&error)),
                Life::Mounted(files) => files.unmount().map_err(|error| failed(&error)),
                _ => Ok(()),
            }
        });
        removed.await?
    }

    /// Makes the guest of a rehearsal what a fresh fork is: nothing of the container, its disks and its streams is left.
    /// Whatever fails, the life is over, and the host destroys the VM.
    async fn begin_again(&self, keep_interfaces: bool) -> Result<(), Status> {
        let rehearsed = lock(&self.life).take_rehearsal()?;
        let machine = match rehearsed {
            Rehearsed::Nothing(machine) => machine,
            Rehearsed::Container(compute) => {
                kill(&compute)?.ended().await;
                compute.remove().map_err(|error| failed(&error))?
            }
        };
        self.substreams.forget().await;
        if keep_interfaces {
            let parked = self.network.lock().unwrap_or_else(PoisonError::into_inner).park();
            parked.map_err(|error| Status::from_error(error.kind(), &error))?;
        } else {
            self.set_network(&wire::Network::new())?;
        }
        let machine = compute::renew(machine).map_err(|error| failed(&error))?;
        *lock(&self.life) = Life::Blank(machine);
        Ok(())
    }
}

/// Kills everything in the container; the answer is the process whose end is the container's.
fn kill(compute: &Compute) -> Result<Arc<Process>, Status> {
    compute.container().signal_all(SIGKILL).map_err(|error| Status::from_error(error.kind(), &error))?;
    compute.process(INIT_PROCESS).map_err(|error| failed(&error))
}

/// When the first process has ended, nothing else of the container goes on: in a process namespace of its own the kernel
/// has seen to that, and otherwise we must.
async fn kill_the_rest(life: Arc<Mutex<Life>>, first: Arc<Process>, shared: bool) {
    first.ended().await;
    let kill = move || {
        if let Life::Container { compute, .. } = &*lock(&life)
        // And not the container that came after a rehearsal.
        && compute.process(INIT_PROCESS).is_ok_and(|now| Arc::ptr_eq(&now, &first))
        && let Err(error) = compute.container().signal_all(SIGKILL)
        {
            tracing::warn!("cannot kill what is left of the container: {error}");
        }
    };
    // Whoever has the life may wait for the host's folders, which this thread fetches.
    if shared { drop(tokio::task::spawn_blocking(kill)) } else { kill() }
}

fn entry(details: ProcessDetails) -> ProcessEntry {
    ProcessEntry {
        pid: details.pid,
        parent: details.parent,
        user_id: details.user_id,
        terminal: details.terminal,
        started_at_ns: details.started_at_ns,
        cpu_ms: details.cpu_ms,
        command: details.command,
        ..Default::default()
    }
}

/// An answer without content.
fn done(result: Result<(), Status>) -> ttrpc::Result<Empty> {
    result.map(|()| Empty::new()).map_err(|status| status.to_ttrpc())
}

fn answer<T>(result: Result<T, Status>) -> ttrpc::Result<T> {
    result.map_err(|status| status.to_ttrpc())
}

#[async_trait]
impl Guest for GuestService {
    async fn personalize(&self, _: &TtrpcContext, request: PersonalizeRequest) -> ttrpc::Result<PersonalizeResponse> {
        answer(self.take_identity(&request))
    }

    async fn sync_clock(&self, _: &TtrpcContext, request: SyncClockRequest) -> ttrpc::Result<SyncClockResponse> {
        answer(match &*lock(&self.life) {
            Life::Blank(_) => Err(out_of_order("the guest has no identity yet")),
            _ => identity::sync_clock(&request).map_err(|error| Status::from_error(error.kind(), &error)),
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let pid = answer(self.create(&request).await)?;
        Ok(CreateContainerResponse { pid, ..Default::default() })
    }

    async fn mount_root(&self, _: &TtrpcContext, request: MountRootRequest) -> ttrpc::Result<Empty> {
        done(self.mount(&request))
    }

    async fn start(&self, _: &TtrpcContext, _: StartRequest) -> ttrpc::Result<Empty> {
        done(self.with_container(|compute| compute.start().map_err(|error| failed(&error))).await)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ExecResponse> {
        let pid = answer(Self::exec(self, &request).await)?;
        Ok(ExecResponse { pid, ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        answer(self.wait_for(request.process).await)
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        done(self.send_signal(request).await)
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        done(self.resize_terminal(request).await)
    }

    async fn processes(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ProcessesResponse> {
        answer(self.list_processes().await)
    }

    async fn stats(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<StatsResponse> {
        answer(self.measure().await)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        done(self.change_limits(&request).await)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        done(self.end().await)
    }

    async fn configure_network(&self, _: &TtrpcContext, request: ConfigureNetworkRequest) -> ttrpc::Result<Empty> {
        done(self.change_network(request).await)
    }

    async fn renew(&self, _: &TtrpcContext, request: RenewRequest) -> ttrpc::Result<Empty> {
        done(self.begin_again(request.keep_interfaces).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life with a machine in it takes PID 1; the e2e tests have those.
    #[test]
    fn a_life_that_is_over_is_not_renewed() {
        let mut life = Life::Over;
        let refused = life.take_rehearsal().err().unwrap();
        assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
        assert!(matches!(life, Life::Over));
    }
}
