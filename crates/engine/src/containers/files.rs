//! Operations on a container's files, which the engine itself never touches: whoever has them serves `proto::files`.
//!
//! | container | who serves |
//! |---|---|
//! | process, running | a shim's `files` process, in a copy of the container's shim's mount namespace |
//! | process, not running | a shim's `files` process, which mounts the root for itself |
//! | hyperv, running | the guest, through the container's shim |
//! | hyperv, not running | a shim's `files` process, with a utility VM that has the container's disks |

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::control::{ContainerBundle, FILES_SOCKET};
use proto::files::{FilesOpened, FilesRequest, FrameReceiver, FrameSender, status_of};
use proto::{ErrorKind, Isolation};
use rustix::fs::{Mode, OFlags};
use tokio::process::{Child, Command};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, watch};

use super::{bundle, files_mounts};
use crate::container::{Container, Progress};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::volumes;

/// How long the other side may be silent, or take nothing. A first hyperv container boots and freezes its template in it.
const SILENCE: Duration = Duration::from_secs(300);
/// How long a `files` process may take to end in order once nobody wants anything of it.
const END: Duration = Duration::from_secs(30);

/// How long the end of a container may take that has begun.
const ENDING: Duration = Duration::from_secs(5);
/// How long a client may take nothing while an end waits for it.
const STALLED: Duration = Duration::from_secs(1);
/// How often an operation begins again whose container ends or starts meanwhile.
const MOST_TRIES: u32 = 3;

/// Holds off what must not happen while an operation is under way.
enum Guard {
    /// The container runs: others may look at its files, too.
    Shared {
        _files: OwnedRwLockReadGuard<()>,
        /// As long as its shim or its utility VM is needed; and whether its end waits for that.
        in_use: Option<(OwnedRwLockReadGuard<()>, watch::Receiver<bool>)>,
    },
    /// It does not: its changes are mounted for this one.
    Alone { _files: OwnedRwLockWriteGuard<()> },
}

/// What an operation sees of a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// What it is made of.
    Own,
    /// What is mounted in it, too.
    Mounts,
}

/// What a `files` process has of a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    /// The root, where the container's shim has mounted it.
    Live,
    /// The root, which it mounts itself.
    Root,
    /// What is mounted in it, and no root.
    Mounts,
}

/// A `files` process, with its working folder.
struct Helper {
    child: Child,
    folder: PathBuf,
}

/// One operation. Dropping it ends it, whatever it was doing.
pub struct Operation {
    socket: UnixStream,
    /// `None` when the guest of a running container serves.
    helper: Option<Helper>,
    /// What a container that does not run has mounted for the operation.
    volumes: Option<HeldVolumes>,
    guard: Option<Guard>,
}

impl Operation {
    /// Finds out who has the container's files, and has them open what is asked for. When that is done, the container may end:
    /// the operation goes on.
    ///
    /// # Errors
    /// 404 when it was removed; 409 when it is a paused hyperv container, whose guest cannot answer; 500 when nobody serves;
    /// what whoever serves says.
    pub async fn begin(engine: &Arc<Engine>, container: &Arc<Container>, request: FilesRequest) -> ApiResult<Self> {
        Self::begin_over(engine, container, request, Sight::Own).await
    }

    /// As [`Operation::begin`], for a request that sees what is mounted in the container, which is filled in. Of a hyperv
    /// container that does not run, those are the files that tell it names, or, for a path in a volume or a bind, these alone.
    ///
    /// # Errors
    /// As [`Operation::begin`]; of a volume that cannot be mounted.
    pub async fn begin_with_mounts(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        request: FilesRequest,
    ) -> ApiResult<Self> {
        Self::begin_over(engine, container, request, Sight::Mounts).await
    }

    async fn begin_over(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        request: FilesRequest,
        sight: Sight,
    ) -> ApiResult<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            let before = container.progress();
            let exits = before.borrow().exits;
            let mut live = false;
            match Self::attempt(engine, container, request.clone(), sight, &mut live).await {
                // It has ended meanwhile, however that was, and its files are elsewhere now.
                Err(_) if live && tries < MOST_TRIES && ends(before, exits).await => {}
                begun => return begun,
            }
        }
    }

    async fn attempt(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        mut request: FilesRequest,
        sight: Sight,
        live: &mut bool,
    ) -> ApiResult<Self> {
        let (guard, guest) = Self::guard(container, live).await?;
        let (engine, container, live) = (Arc::clone(engine), Arc::clone(container), *live);
        let mut served = if live { Served::Live } else { Served::Root };
        if sight == Sight::Mounts {
            let alone = (container.isolation == Isolation::Hyperv && !live).then(|| path_of(&request));
            match alone.flatten().and_then(|path| files_mounts::within(&container, path)) {
                Some(mounts) => {
                    served = Served::Mounts;
                    request.set_mounts(mounts);
                }
                None => request.set_mounts(files_mounts::of(&container, live)?),
            }
        }
        if guest {
            let begun = tokio::task::spawn_blocking(move || {
                let socket = connect(&engine.bundle(&container.id))
                    .map_err(|error| ApiError::caused("cannot reach the container's shim", &error))?;
                let operation = Self { socket, helper: None, volumes: None, guard: Some(guard) };
                operation.ask(&request).map(|()| operation)
            });
            return begun.await?;
        }
        let has_volumes = container.isolation == Isolation::Process || served == Served::Mounts;
        let volumes = sight == Sight::Mounts && !live && has_volumes;
        let made = tokio::task::spawn_blocking(move || {
            let volumes = volumes.then(|| HeldVolumes::mount(&engine, &container)).transpose()?;
            Ok::<_, ApiError>((Helper::prepare(&engine, &container, served)?, volumes))
        });
        let (made, volumes) = made.await??;
        let (helper, socket) = Helper::start(made)?;
        let mut operation = Self { socket, helper: Some(helper), volumes, guard: Some(guard) };
        let begun = tokio::task::spawn_blocking(move || {
            operation.ask(&request)?;
            // It has the mounts of the container for itself now.
            if let Some(Guard::Shared { in_use, .. }) = &mut operation.guard {
                drop(in_use.take());
            }
            Ok(operation)
        });
        begun.await?
    }

    /// Waits until the files may be looked at, and says whether the container is `live`, and whether its guest has them.
    async fn guard(container: &Arc<Container>, live: &mut bool) -> ApiResult<(Guard, bool)> {
        let _lifecycle = container.hold().await?;
        *live = container.running().is_ok() && container.record().phase.is_running();
        let files = Arc::clone(&container.files);
        if !*live {
            return Ok((Guard::Alone { _files: files.write_owned().await }, false));
        }
        let in_use = Some((Arc::clone(&container.in_use).read_owned().await, container.awaited.subscribe()));
        let guard = Guard::Shared { _files: files.read_owned().await, in_use };
        if container.isolation == Isolation::Process {
            return Ok((guard, false));
        }
        if container.record().phase.is_paused() {
            return Err(ApiError::conflict(format!(
                "container {} is paused: its utility VM cannot answer, unpause it first",
                container.id
            )));
        }
        Ok((guard, true))
    }

    /// Sends the request, and waits until the container's trees are open. When: in a thread that may wait, as everything else
    /// but beginning.
    fn ask(&self, request: &FilesRequest) -> ApiResult<()> {
        let failed = |error: io::Error| ApiError::caused("cannot ask for the container's files", &error);
        self.socket.set_write_timeout(Some(SILENCE)).map_err(failed)?;
        self.socket.set_read_timeout(Some(SILENCE)).map_err(failed)?;
        match self.sender()?.message(request) {
            // It has ended with an answer, most likely, which is still there to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map_err(failed)?,
        }
        received(self.receiver()?.message::<FilesOpened>()).map(drop)
    }

    fn sender(&self) -> ApiResult<FrameSender<UnixStream>> {
        let socket = self.socket.try_clone();
        socket.map(FrameSender::new).map_err(|error| ApiError::caused("cannot ask for the container's files", &error))
    }

    /// What is answered.
    ///
    /// # Errors
    /// Of the system.
    pub fn receiver(&self) -> ApiResult<FrameReceiver<UnixStream>> {
        let socket = self.socket.try_clone();
        socket.map(FrameReceiver::new).map_err(|error| ApiError::caused("cannot read the container's files", &error))
    }

    /// Sends a stream, and waits until it was taken.
    ///
    /// # Errors
    /// What the other side says; the stream's own failure.
    pub fn send(&self, mut stream: impl Read + Send) -> ApiResult<()> {
        let (mut sender, mut receiver) = (self.sender()?, self.receiver()?);
        // Nothing comes before all was sent, however long the client takes.
        let patient = |limit| self.socket.set_read_timeout(limit);
        patient(None).map_err(|error| ApiError::caused("cannot wait for the container's files", &error))?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || -> Result<(), ApiError> {
                let sent = copy(&mut stream, &mut sender);
                let told = match &sent {
                    Ok(()) => Ok(()),
                    Err(error) => Err(proto::Status::new(error.kind, error.message.clone())),
                };
                // When it cannot be told, the other side has ended, and its answer says why.
                let _ = sender.end(&told);
                let _ = patient(Some(SILENCE));
                sent
            });
            let answered = received(io::copy(&mut receiver, &mut io::sink()).map(drop));
            if answered.is_err() {
                // Ends the sending, too.
                let _ = self.socket.shutdown(std::net::Shutdown::Both);
            }
            let sent = sending.join().unwrap_or_else(|_| Err(ApiError::internal("sending broke off")));
            // A stream that is none is the client's fault, and what the other side says follows from it.
            sent.and(answered)
        })
    }

    /// Returns once the container's end has waited for a client's next piece for too long. Never for an operation that no end waits for.
    pub async fn is_in_the_way(&self) {
        if let Some(Guard::Shared { in_use: Some((_, awaited)), .. }) = &self.guard
            && awaited.clone().wait_for(|awaited| *awaited).await.is_ok()
        {
            tokio::time::sleep(STALLED).await;
            return;
        }
        std::future::pending().await
    }

    /// Waits until everything is in order again: a container's disk can be used by the next one who wants it.
    ///
    /// # Errors
    /// The `files` process did not end well.
    pub fn finish(mut self) -> ApiResult<()> {
        let Some(helper) = self.helper.take() else { return Ok(()) };
        let (guard, volumes) = (self.guard.take(), self.volumes.take());
        let runtime = tokio::runtime::Handle::current();
        let ended = runtime.block_on(helper.end());
        drop(volumes);
        drop(guard);
        ended
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let (guard, volumes) = (self.guard.take(), self.volumes.take());
        let Some(helper) = self.helper.take() else { return };
        // It notices, and ends.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        tokio::spawn(async move {
            if let Err(error) = helper.end().await {
                tracing::debug!("an operation on a container's files was broken off: {}", error.message);
            }
            drop(volumes);
            drop(guard);
        });
    }
}

/// The volumes of a container that does not run, where they can be mounted from. Let go on drop, before the container may run.
struct HeldVolumes(Arc<Engine>, Arc<Container>);

impl HeldVolumes {
    fn mount(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<Self> {
        let mounts = container.record().mounts.clone();
        let held = Self(Arc::clone(engine), Arc::clone(container));
        volumes::prepare(engine, container, &mounts)?;
        Ok(held)
    }
}

impl Drop for HeldVolumes {
    fn drop(&mut self) {
        volumes::release(&self.0, &self.1, false);
    }
}

/// The path of a request that sees mounts.
fn path_of(request: &FilesRequest) -> Option<&str> {
    match request {
        FilesRequest::Stat { path, .. } | FilesRequest::Read { path, .. } | FilesRequest::Write { path, .. } => {
            Some(path)
        }
        FilesRequest::Place { .. }
        | FilesRequest::Export
        | FilesRequest::Changes { .. }
        | FilesRequest::Layer { .. } => None,
    }
}

/// Whether a container's run ends, of which that many have ended before.
async fn ends(mut progress: watch::Receiver<Progress>, exits: u64) -> bool {
    let ended = progress.wait_for(|now| now.exits != exits || now.removed);
    tokio::time::timeout(ENDING, ended).await.is_ok_and(|ended| ended.is_ok())
}

/// Waits a while for the operations that need what runs of a container: when this returns, it may go.
pub async fn no_longer_used(container: &Container) {
    container.awaited.send_replace(true);
    if tokio::time::timeout(ENDING, container.in_use.write()).await.is_err() {
        tracing::warn!(id = %container.id, "an operation on the files of a container that has ended is broken off");
    }
    container.awaited.send_replace(false);
}

/// What the other side has said, as an error for the client.
///
/// # Errors
/// What it is.
pub fn received<T>(received: io::Result<T>) -> ApiResult<T> {
    received.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ApiError::new(ErrorKind::DeadlineExceeded, "the container's files do not answer")
        }
        _ => status_of(&error).into(),
    })
}

/// Copies a client's stream. Its failure is told as the client's; that nobody takes it is no failure of its own.
fn copy(stream: &mut impl Read, sender: &mut impl Write) -> ApiResult<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return Err(ApiError::invalid(format!("cannot read the archive: {}", chain(&error)))),
        };
        if sender.write_all(&buffer[..count]).is_err() {
            return Ok(());
        }
    }
}

fn connect(bundle: &Path) -> io::Result<UnixStream> {
    let folder = rustix::fs::open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // A socket's path has 107 bytes, and a bundle's may need more.
    UnixStream::connect(format!("/proc/self/fd/{}/{FILES_SOCKET}", folder.as_raw_fd()))
}

/// A `files` process that is ready to be started.
struct Prepared {
    command: Command,
    folder: PathBuf,
    socket: UnixStream,
}

impl Helper {
    fn prepare(engine: &Engine, container: &Container, served: Served) -> ApiResult<Prepared> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let failed =
            |error: io::Error| ApiError::caused("cannot prepare an operation on the container's files", &error);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = engine.operations_dir().join(number.to_string());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&engine.settings.shim);
        if served == Served::Mounts {
            command.arg("-mounts");
        }
        let described = if served == Served::Live {
            command.arg("-live").arg("-bundle").arg(engine.bundle(&container.id));
            Ok(())
        } else {
            let described = container.host().and_then(|host| bundle::describe(engine, container, &host, &folder));
            described.and_then(|bundle| bundle::write_json(&folder.join(ContainerBundle::FILE_NAME), &bundle))
        };
        let log = described.and_then(|()| std::fs::File::create(folder.join(LOG)).map_err(failed));
        let log = log.inspect_err(|_| remove_folder(&folder))?;
        command.arg("files").current_dir(&folder).stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(Stdio::null()).stderr(Stdio::from(log)).kill_on_drop(true);
        Ok(Prepared { command, folder, socket: ours })
    }

    /// Starts it. When: within the runtime.
    fn start(prepared: Prepared) -> ApiResult<(Self, UnixStream)> {
        let Prepared { mut command, folder, socket } = prepared;
        let child = command.spawn().map_err(|error| {
            remove_folder(&folder);
            ApiError::caused("cannot start the shim for the container's files", &error)
        })?;
        Ok((Self { child, folder }, socket))
    }

    /// Waits for its end, and removes its folder.
    async fn end(mut self) -> ApiResult<()> {
        let ended = tokio::time::timeout(END, self.child.wait()).await;
        let outcome = match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                let said = std::fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
                let last = said.lines().next_back().unwrap_or_default().to_owned();
                Err(ApiError::internal(format!("the operation on the container's files ended with {status}: {last}")))
            }
            Ok(Err(error)) => Err(ApiError::caused("cannot wait for the operation's end", &error)),
            Err(_) => {
                let killed = self.child.kill().await;
                Err(ApiError::internal(format!("the operation on the container's files did not end: {killed:?}")))
            }
        };
        remove_folder(&self.folder);
        outcome
    }
}

/// Name of the file that takes what a `files` process complains of.
const LOG: &str = "log";

fn remove_folder(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove an operation's folder");
        }
        _ => {}
    }
}

/// Removes what an engine that was killed has left of its operations; their processes end with their connections.
pub async fn clear_leftovers(engine: &Arc<Engine>) {
    let folder = engine.operations_dir();
    if let Err(error) = tokio::task::spawn_blocking(move || remove_folder(&folder)).await {
        tracing::warn!(%error, "cannot remove the folders of operations");
    }
}

/// Paths that the engine has made in a container: mount points and the folders above them, and the identity of a guest's
/// container. Source of the first ones: moby, `initlayer.Setup`.
///
/// # Errors
/// As [`bundle::build_spec`].
pub fn own_paths(engine: &Engine, container: &Container) -> ApiResult<Vec<String>> {
    let mut paths: Vec<PathBuf> =
        ["/dev/console", "/.dockerenv", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].map(PathBuf::from).into();
    let spec = bundle::build_spec(engine, container)?;
    paths.extend(spec.mounts().iter().flatten().map(|mount| mount.destination().clone()));
    if container.isolation == Isolation::Hyperv {
        paths.push("/etc/machine-id".into());
    }
    let mut own: Vec<String> = paths
        .iter()
        .flat_map(|path| path.ancestors())
        .filter(|path| path.parent().is_some())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    own.sort_unstable();
    own.dedup();
    Ok(own)
}
