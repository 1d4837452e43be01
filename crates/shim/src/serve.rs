//! `serve`: the process that owns a container, started by our engine or by `start`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;
use ttrpc::asynchronous::Server;

use crate::bundle::Bundle;
use crate::events::Publisher;
use crate::flags::Flags;
use crate::reserve::Caller;
use crate::shim::{Calling, Ready, Shim};
use crate::standby::Standby;
use crate::{group, notices, service, shares, sys};

/// Where the listening socket is inherited.
pub const LISTENER_FD: i32 = 3;
/// A shim that nobody has given a container is of no use: whoever started it has died.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Shutdown follows the last Delete, or a Create that failed, at once. When it does not, whoever would have asked for it has died.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// As [`IDLE_LIMIT`], for a shim that stands by; the engine lets go of it earlier.
const STANDBY_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Spawned threads only wait for the container crate; glibc would reserve 8 MiB for each. Unoptimized builds need more than half of it.
const THREAD_STACK: usize = 1024 * 1024;

/// What threads are called that do what blocks.
pub const WORKER_THREAD: &str = "shim-worker";

/// Serves one container until Shutdown.
///
/// When: in a process without threads; the bundle is the working directory, the listening socket is descriptor 3.
///
/// # Errors
/// The socket, the bundle or the mount namespace cannot be had.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let listener = sys::inherited_listener(LISTENER_FD).context("no listening socket as descriptor 3")?;
    sys::close_from(4).context("cannot close inherited descriptors")?;
    let folder = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        // Its folder gets another name when it becomes a container's.
        None if flags.standby => PathBuf::from("."),
        None => std::env::current_dir().context("no working directory")?,
    };
    let bundle = Bundle::at(folder);
    leave_the_caller()?;
    start_log(bundle.path(), flags.debug)?;
    shares::keep_host_mounts().context("cannot keep the host's mounts at hand")?;
    private_mounts().context("cannot make a mount namespace")?;
    bundle.write_shim_pid()?;
    // The process that stands before this one; when a standby's is gone, nobody will come for it.
    let caller = rustix::process::getppid();
    let ready = Ready { helper: if flags.standby { None } else { spawn_helper() }, standby: None };
    let runtime = runtime(Duration::from_secs(1))?;
    let ended = runtime.block_on(async {
        if flags.standby {
            return serve_standby(flags, bundle, listener, caller).await;
        }
        let caller = Some(Caller::new(flags, flags.isolation));
        let calling = Calling { isolation: flags.isolation, is_group: flags.group, caller };
        let shim = Shim::new(bundle, publisher(flags), ready, calling);
        serve(flags, &shim, listener, abandoned(&shim)).await
    });
    runtime.shutdown_background();
    ended
}

/// What a shim runs on. Shape: `keep_alive` is how long threads without work stay.
///
/// # Errors
/// The kernel has no room for it.
pub fn runtime(keep_alive: Duration) -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .thread_name(WORKER_THREAD)
        .thread_stack_size(THREAD_STACK)
        .thread_keep_alive(keep_alive)
        .max_blocking_threads(16)
        .build()
        .context("cannot start")
}

fn spawn_helper() -> Option<container::Helper> {
    // Without one Create tries again, and then it is an error.
    let helper = container::Helper::spawn();
    helper.inspect_err(|error| tracing::warn!(%error, "no process to create a container with")).ok()
}

/// A session of our own: no terminal, and no signal to the caller's process group reaches us.
///
/// # Errors
/// There is no `/dev/null`.
pub fn leave_the_caller() -> anyhow::Result<()> {
    match rustix::process::setsid() {
        // EPERM: we lead a process group already.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error).context("cannot make a session"),
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("no /dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    Ok(())
}

/// Mounts of ours are seen by nobody else and vanish with us, and the host's later mounts are seen by us.
///
/// # Errors
/// What the kernel says.
pub fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// Begins to log, as [`log_to`] says; `debug` is for more of it.
///
/// # Errors
/// As [`log_to`].
pub fn start_log(bundle: &Path, debug: bool) -> anyhow::Result<()> {
    log_to(bundle)?;
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(|| LossyWriter).init();
    Ok(())
}

/// What is logged from now on goes to a bundle, with what a panic prints: containerd makes a fifo `log` there and shows what
/// comes; otherwise to `shim.log`.
///
/// # Errors
/// It cannot be opened.
pub fn log_to(bundle: &Path) -> anyhow::Result<()> {
    let fifo: PathBuf = bundle.join("log");
    let log = if std::fs::metadata(&fifo).is_ok_and(|meta| meta.file_type().is_fifo()) {
        // Both directions, so that a containerd that goes away breaks no pipe; and never waiting: a full one loses lines.
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo)
    } else {
        OpenOptions::new().append(true).create(true).mode(0o600).open(bundle.join("shim.log"))
    };
    let log = log.with_context(|| format!("cannot open a log in {}", bundle.display()))?;
    Ok(rustix::stdio::dup2_stderr(log.as_fd())?)
}

/// Writes to standard error, where the log is; without std's lock, which a panic holds while it prints.
struct LossyWriter;

impl Write for LossyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(rustix::stdio::stderr(), bytes) {
            Err(rustix::io::Errno::AGAIN) => Ok(bytes.len()),
            written => Ok(written?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells containerd what happens, if it has said where.
pub fn publisher(flags: &Flags) -> Publisher {
    let address = std::env::var("TTRPC_ADDRESS").ok();
    Publisher::new(address.as_deref(), flags.namespace.as_deref().unwrap_or("default"))
}

/// Has what its folder asks for stand by, and serves from then on; ends when the caller does before there is a container.
async fn serve_standby(
    flags: &Flags,
    bundle: Bundle,
    listener: UnixListener,
    caller: Option<Pid>,
) -> anyhow::Result<()> {
    let caller = watch_process(caller).context("cannot watch the process that started this one")?;
    let standby = tokio::select! {
        prepared = Standby::prepare(&bundle) => prepared.context("cannot have a utility VM ready")?,
        _ = caller.readable() => return Ok(()),
    };
    let ready = Ready { helper: None, standby };
    let shim = Shim::new(bundle, publisher(flags), ready, Calling::default());
    serve(flags, &shim, listener, bereft(&shim, &caller)).await
}

/// Serves the Task API until the shim ends, or `abandoned` does.
///
/// # Errors
/// The socket cannot be served.
pub async fn serve(
    flags: &Flags,
    shim: &Arc<Shim>,
    listener: UnixListener,
    abandoned: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let address = listener.local_addr().ok().filter(|_| flags.group);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut server = Server::new()
        .add_listener(listener.into())
        .register_service(service::services(shim))
        .register_service(notices::services(shim));
    server.start().await.context("cannot serve")?;
    tracing::info!(id = flags.id.as_deref().unwrap_or(""), pid = std::process::id(), "serving");
    tokio::select! {
        () = shim.ended() => {}
        () = abandoned => tracing::warn!("nobody has a container here, and nobody ends this shim; ending"),
        result = ignore_signals() => result?,
        () = shim.rest.keep() => {}
    }
    if let Some(address) = address {
        // At once: who starts the next container of the group must not find this shim any more.
        group::forget(&address);
    }
    // The answer to Shutdown is still on its way.
    let _ = tokio::time::timeout(Duration::from_millis(200), server.shutdown()).await;
    tracing::info!("ended");
    Ok(())
}

/// Readable when the process has ended.
fn watch_process(process: Option<Pid>) -> io::Result<AsyncFd<OwnedFd>> {
    let process = process.ok_or(io::ErrorKind::NotFound)?;
    sys::watch(pidfd_open(process, PidfdFlags::NONBLOCK)?, Interest::READABLE)
}

/// Answers when nobody will come for the standby any more: the caller has ended, or has long forgotten it. Once there is a
/// container, never.
async fn bereft(shim: &Shim, caller: &AsyncFd<OwnedFd>) {
    tokio::select! {
        // A process handle that cannot be waited for any more is as good as an ended one.
        _ = caller.readable() => {}
        () = tokio::time::sleep(STANDBY_LIMIT) => {}
    }
    if shim.is_busy().await {
        std::future::pending::<()>().await;
    }
}

/// Handlers, not SIG_IGN: an ignored signal would stay ignored in every container.
async fn ignore_signals() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        let got = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hangup.recv() => "SIGHUP",
        };
        tracing::warn!("ignoring {got}: a shim ends when its container is deleted");
    }
}

/// Answers when nobody has come with a container in time, or nobody has ended a shim without one.
pub async fn abandoned(shim: &Shim) {
    tokio::select! {
        () = tokio::time::sleep(IDLE_LIMIT) => {}
        () = shim.emptied() => tokio::time::sleep(SHUTDOWN_LIMIT).await,
    }
    // What has a task is not looked at: most shims wait for days.
    while shim.is_busy().await {
        shim.emptied().await;
        tokio::time::sleep(SHUTDOWN_LIMIT).await;
    }
}
