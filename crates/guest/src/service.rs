//! The `Guest` service of `proto::gcs`, over the control substreams.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use async_trait::async_trait;
use futures_util::StreamExt;
use proto::gcs::wire::{
    self, ConfigureNetworkRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse, Empty,
    ExecRequest, ExecResponse, MountRootRequest, PersonalizeRequest, PersonalizeResponse, ProcessEntry,
    ProcessesResponse, RenewRequest, ResizeRequest, SignalRequest, StartRequest, StatsResponse, SyncClockRequest,
    SyncClockResponse, UpdateRequest, WaitOomKillRequest, WaitOomKillResponse, WaitRequest, WaitResponse,
};
use proto::gcs::wire_ttrpc::{Guest, create_guest};
use proto::{ErrorKind, ProcessDetails, Status};
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::archive::{self, FilesOwner, MountedFiles};
use crate::compute::{self, Compute, ComputeError};
use crate::identity::{self, IdentityFiles};
use crate::lack::Lack;
use crate::life::{Life, Rehearsed, failed, lock, out_of_order};
use crate::loopback;
use crate::machine::Machine;
use crate::name_files;
use crate::network::Network;
use crate::pod::Pod;
use crate::port::Port;
use crate::process::{Attendants, Process, TerminalSize};
use crate::reaper::Reaper;
use crate::shares::Shares;
use crate::stream_thread::StreamThread;
use crate::substreams::{self, Destinations, Substreams};
use crate::vsock;

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
        let (ports, ports_wanted) = mpsc::unbounded_channel();
        tokio::spawn(loopback::serve_all(ports_wanted));
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
        Ok(Self { substreams, destinations: Destinations { control, files, ports }, _server: server })
    }

    /// Serves the host until it closes the port.
    pub async fn serve(self, port: Port) -> anyhow::Result<()> {
        let driven = substreams::drive(port, &self.substreams, self.destinations).await;
        driven.context("the connection to the host broke")
    }
}

struct GuestService {
    life: Arc<Mutex<Life>>,
    /// A container has, or had, folders of the host.
    shared: AtomicBool,
    network: Mutex<Network>,
    identity: IdentityFiles,
    substreams: Substreams,
    attendants: Attendants,
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

    /// Changes the guest's network, and the files that tell its containers of names.
    async fn change_network(&self, request: ConfigureNetworkRequest) -> Result<(), Status> {
        let first = self.with_pod(|pod| pod.containers().map(|compute| compute.first().1.pid()).collect::<Vec<_>>());
        let first = first.await?;
        self.set_network(&request.network)?;
        let write = move || first.into_iter().try_for_each(|pid| name_files::write(pid, &request.files));
        let written = self.aside(write).await?;
        written.map_err(|error| Status::from_error(error.kind(), &error))
    }

    async fn create(&self, request: CreateContainerRequest) -> Result<u32, Status> {
        let number = request.container;
        let life = Arc::clone(&self.life);
        // Refused before anything of it is made.
        self.aside(move || lock(&life).pod_for(number).map(drop)).await??;
        if request.vsock {
            let started = vsock::start();
            started
                .map_err(|error| Status::new(ErrorKind::Unavailable, format!("the guest has no vsock: {error:#}")))?;
        }
        let mut streams = self.substreams.claim(request.process).await;
        if !request.stdin {
            streams.stdin = None;
        }
        let streamed = if request.file_system { 0 } else { request.shares };
        let shares = self.substreams.claim_shares(request.first_share, streamed).await;
        if u32::try_from(shares.len()) != Ok(streamed) {
            return Err(Status::new(ErrorKind::InvalidArgument, "the host's folders have no substreams"));
        }
        if request.shares > 0 {
            self.shared.store(true, Ordering::SeqCst);
        }
        let shared = self.shared.load(Ordering::SeqCst);
        let first_share = request.first_share;
        let shares = if request.file_system { Shares::mount_device() } else { Shares::mount(first_share, shares) };
        let shares = shares.map_err(|error| failed(&ComputeError::Share(error)))?;
        let attendants = self.attendants.clone();
        let made = self.with_life(move |life| {
            if shared {
                attendants.reaper.remember();
            }
            life.pod()?.create(&request, streams, shares, &attendants).map_err(|error| failed(&error))
        });
        let first = made.await?;
        tokio::spawn(kill_the_rest(Arc::clone(&self.life), number, Arc::clone(&first), shared));
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
        let mut life = lock(&self.life);
        match &*life {
            Life::Personalized { .. } => {}
            Life::Blank(_) => return Err(out_of_order("the guest has no identity yet")),
            _ => return Err(out_of_order("the guest has had its container already")),
        }
        let Life::Personalized { machine, .. } = std::mem::replace(&mut *life, Life::Over) else { return Ok(()) };
        let mounted = MountedFiles::mount(request, machine).map_err(|error| failed(&error))?;
        *life = Life::Mounted(Box::new(mounted));
        Ok(())
    }

    /// Does something with the guest's life.
    async fn with_life<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Life) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let life = Arc::clone(&self.life);
        self.aside(move || act(&mut lock(&life))).await?
    }

    /// Does something with what runs.
    async fn with_pod<T: Send + 'static>(&self, act: impl FnOnce(&mut Pod) -> T + Send + 'static) -> Result<T, Status> {
        self.with_life(|life| life.pod().map(act)).await
    }

    /// Does something with one container.
    async fn with_container<T: Send + 'static>(
        &self,
        number: u32,
        act: impl FnOnce(&Compute) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        self.with_pod(move |pod| act(pod.container(number).map_err(|error| failed(&error))?)).await?
    }

    async fn exec(&self, request: ExecRequest) -> Result<u32, Status> {
        self.with_container(request.container, |_| Ok(())).await?;
        let mut streams = self.substreams.claim(request.process).await;
        if !request.stdin {
            streams.stdin = None;
        }
        let attendants = self.attendants.clone();
        let shared = self.shared.load(Ordering::SeqCst);
        let started = self.with_pod(move |pod| {
            if shared {
                attendants.reaper.remember();
            }
            pod.exec(&request, streams, &attendants).map_err(|error| failed(&error))
        });
        let started = started.await?;
        let life = Arc::clone(&self.life);
        let warm_up = move || {
            if let Life::Pod { pod, .. } = &mut *lock(&life) {
                pod.warm_up();
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
        let process = self.with_pod(move |pod| pod.process(number).cloned().map_err(|error| failed(&error)));
        let exit = process.await??.finished().await;
        let told = self.with_pod(move |pod| {
            pod.forget(number);
            // Only a container's own end says anything about it.
            pod.container_begun_by(number).map_or(0, |compute| compute.container().oom_kills())
        });
        let oom_kills = told.await.unwrap_or_default();
        Ok(WaitResponse { exit_code: exit.code, exited_at_ns: exit.at_ns, oom_kills, ..Default::default() })
    }

    async fn wait_for_oom_kill(&self, request: WaitOomKillRequest) -> Result<u64, Status> {
        let WaitOomKillRequest { container, seen, .. } = request;
        let unwatched = |error: std::io::Error| Status::from_error(ErrorKind::Internal, &error);
        let watched = self.with_container(container, move |compute| {
            let events = compute.container().oom_events().map_err(unwatched)?;
            Ok((events, compute.first().1.ended()))
        });
        let (events, ended) = watched.await?;
        let lack = Lack::watch(events).map_err(unwatched)?;
        let kills = || self.with_container(container, |compute| Ok(compute.container().oom_kills()));
        tokio::select! {
            biased;
            kills = lack.kills_after(seen, kills) => kills,
            () = ended => kills().await,
        }
    }

    async fn send_signal(&self, request: SignalRequest) -> Result<(), Status> {
        let sent = self.with_pod(move |pod| {
            if !request.all {
                return pod.signal(request.process, request.signal).map_err(|error| failed(&error));
            }
            let signal = i32::try_from(request.signal).unwrap_or_default();
            let compute = pod.container_of(request.process).map_err(|error| failed(&error))?;
            compute.container().signal_all(signal).map_err(|error| Status::from_error(error.kind(), &error))
        });
        sent.await?
    }

    async fn resize_terminal(&self, request: ResizeRequest) -> Result<(), Status> {
        let clamp = |characters: u32| u16::try_from(characters).unwrap_or(u16::MAX);
        let size = TerminalSize { width: clamp(request.width), height: clamp(request.height) };
        let resized = self.with_pod(move |pod| {
            let number = request.process;
            let resized = pod.process(number).map_err(|error| failed(&error))?.resize(size);
            resized.map_err(|source| failed(&ComputeError::Kernel { what: "resize the terminal of", number, source }))
        });
        resized.await?
    }

    async fn list_processes(&self, container: u32) -> Result<ProcessesResponse, Status> {
        let processes = self.with_container(container, |compute| {
            compute.container().processes().map_err(|error| Status::from_error(error.kind(), &error))
        });
        let processes = processes.await?;
        Ok(ProcessesResponse { processes: processes.into_iter().map(entry).collect(), ..Default::default() })
    }

    async fn measure(&self, container: u32) -> Result<StatsResponse, Status> {
        let stats = self.with_container(container, |compute| {
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
        let updated = self.with_container(request.container, move |compute| {
            compute.container().update(&resources).map_err(|error| Status::from_error(error.kind(), &error))
        });
        updated.await
    }

    async fn remove(&self, container: u32) -> Result<(), Status> {
        let first = self.with_container(container, kill).await?;
        first.ended().await;
        self.with_pod(move |pod| pod.remove(container).map_err(|error| failed(&error))).await?
    }

    async fn end(&self) -> Result<(), Status> {
        let killed = self.with_life(|life| match life {
            Life::Blank(_) => Err(out_of_order("the guest has no identity yet")),
            Life::Personalized { .. } | Life::Mounted(_) | Life::Over => Ok(Vec::new()),
            Life::Pod { pod, .. } => pod.containers().map(kill).collect(),
        });
        for first in killed.await? {
            first.ended().await;
        }
        let removed = self.with_life(|life| match std::mem::replace(life, Life::Over) {
            Life::Pod { pod, .. } => pod.dissolve().map(drop).map_err(|error| failed(&error)),
            Life::Mounted(files) => files.unmount().map_err(|error| failed(&error)),
            _ => Ok(()),
        });
        removed.await
    }

    /// Makes the guest of a rehearsal what a fresh fork is: nothing of the container, its disks and its streams is left.
    /// Whatever fails, the life is over, and the host destroys the VM.
    async fn begin_again(&self, keep_interfaces: bool) -> Result<(), Status> {
        let rehearsed = lock(&self.life).take_rehearsal()?;
        let machine = match rehearsed {
            Rehearsed::Nothing(machine) => machine,
            Rehearsed::Pod(pod) => {
                for compute in pod.containers() {
                    kill(compute)?.ended().await;
                }
                pod.dissolve().map_err(|error| failed(&error))?
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

/// Kills everything in a container; the answer is the process whose end is the container's.
fn kill(compute: &Compute) -> Result<Arc<Process>, Status> {
    compute.container().signal_all(SIGKILL).map_err(|error| Status::from_error(error.kind(), &error))?;
    Ok(Arc::clone(compute.first().1))
}

/// When the first process has ended, nothing else of the container goes on: in a process namespace of its own the kernel
/// has seen to that, and otherwise we must.
async fn kill_the_rest(life: Arc<Mutex<Life>>, container: u32, first: Arc<Process>, shared: bool) {
    first.ended().await;
    let kill = move || {
        if let Life::Pod { pod, .. } = &*lock(&life)
            && let Ok(compute) = pod.container(container)
            // And not the container that came after a rehearsal.
            && Arc::ptr_eq(compute.first().1, &first)
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
        let pid = answer(self.create(request).await)?;
        Ok(CreateContainerResponse { pid, ..Default::default() })
    }

    async fn mount_root(&self, _: &TtrpcContext, request: MountRootRequest) -> ttrpc::Result<Empty> {
        done(self.mount(&request))
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<Empty> {
        let started = self.with_pod(move |pod| pod.start(request.container).map_err(|error| failed(&error)));
        done(started.await.flatten())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ExecResponse> {
        let pid = answer(Self::exec(self, request).await)?;
        Ok(ExecResponse { pid, ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        answer(self.wait_for(request.process).await)
    }

    async fn wait_oom_kill(&self, _: &TtrpcContext, request: WaitOomKillRequest) -> ttrpc::Result<WaitOomKillResponse> {
        let kills = answer(self.wait_for_oom_kill(request).await)?;
        Ok(WaitOomKillResponse { kills, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        done(self.send_signal(request).await)
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        done(self.resize_terminal(request).await)
    }

    async fn processes(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<ProcessesResponse> {
        answer(self.list_processes(request.container).await)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<StatsResponse> {
        answer(self.measure(request.container).await)
    }

    async fn remove_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        done(self.remove(request.container).await)
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
