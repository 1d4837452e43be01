//! `standby`: makes a utility VM, or a process to fork one in, has it stand by for a foreign containerd's containers, and becomes the
//! shim of the one that gets it.
//!
//! ```text
//!   take the place ─▶ quiet ─▶ fork, rehearse ═ stands by ═▶ claimed: the container's mounts, folder, log ─▶ serve
//!                       │            │                │
//!                       └────────────┴────────────────┴─▶ containerd is gone, nobody has come, the VM has died: end
//! ```
//!
//! It has nothing of the container whose start it follows: no mounts, no cgroup, no log. Why so: docs/design/0019-containerd.md.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};

use crate::bundle::{Bundle, ProcessRecord};
use crate::flags::Flags;
use crate::foreign::{self, StandbyKind};
use crate::group::SOCKETS;
use crate::plan::Plan;
use crate::reserve::{self, Claim, Offer, Order, Place};
use crate::shim::{Calling, Ready, Shim};
use crate::spec::GuestNames;
use crate::standby::{Rehearsed, Standby};
use crate::unique::unique_name;
use crate::{presence, serve, shares, sys};

/// Bound of one preparation, which takes about two seconds under software emulation.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long containerd may be away; one that is upgraded comes back.
const RESTART: Duration = Duration::from_secs(15);
/// How often it is looked for then.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long threads without work stay. They have the mounts of before, so none may be left when a container comes.
const THREAD_KEEP_ALIVE: Duration = Duration::from_millis(100);
/// How long they may take to end.
const SETTLING: Duration = Duration::from_secs(5);

/// Prepares, stands by, and serves.
///
/// When: in a process without threads; the order is on standard input.
///
/// # Errors
/// No order; no VM; the container that has come cannot be served. What went wrong before one came stays in the place's log.
pub fn run() -> anyhow::Result<()> {
    let (order, kind) = Order::receive().context("no order on standard input")?;
    sys::close_from(3).context("cannot close inherited descriptors")?;
    let place = order.place()?;
    let taken = place.take().with_context(|| format!("cannot stand by at {}", place.folder().display()))?;
    let Some(listener) = taken else { return Ok(()) };
    std::env::set_current_dir(place.folder())?;
    serve::leave_the_caller()?;
    serve::start_log(place.folder(), order.caller.debug)?;
    serve::private_mounts().context("cannot make a mount namespace")?;
    let runtime = serve::runtime(THREAD_KEEP_ALIVE)?;
    let kept = runtime.block_on(keep(order, kind, &place, listener));
    runtime.shutdown_background();
    kept
}

async fn keep(order: Order, kind: StandbyKind, place: &Place, listener: StdListener) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let Some((standby, taken)) = stand_by(&order, kind, place, &listener).await? else { return Ok(place.clear()?) };
    let bundle = taken.furnish(place)?;
    drop(listener);
    become_shim(order, standby, bundle, taken).await
}

/// Answers with what stood by and who has taken it, or `None` when none is needed any more.
async fn stand_by(
    order: &Order,
    kind: StandbyKind,
    place: &Place,
    listener: &UnixListener,
) -> anyhow::Result<Option<(Standby, Taken)>> {
    let gone = containerd_ends(order.caller.events.as_deref());
    tokio::pin!(gone);
    let prepared = tokio::select! {
        prepared = prepare(order, kind, place) => prepared,
        error = turn_away(listener) => Err(error.into()),
        () = &mut gone => return Ok(None),
    };
    let Some(standby) = prepared.inspect_err(|_| close(place))? else { return Ok(None) };
    tracing::info!(pid = std::process::id(), ?kind, "standing by");
    let unused = tokio::time::sleep(Duration::from_secs(order.options.standby_unused_s));
    tokio::pin!(unused);
    loop {
        tokio::select! {
            accepted = listener.accept() => match claimed(accepted?.0, &standby).await {
                Ok(taken) => return Ok(Some((standby, taken))),
                Err(error) => tracing::debug!(%error, "somebody came and did not take it"),
            },
            exit = standby.ended() => {
                close(place);
                bail!("what stood by has ended: {}", exit.detail);
            }
            () = &mut gone => return Ok(None),
            () = &mut unused => return Ok(None),
        }
    }
}

/// Whoever is to come next finds no socket; the log stays.
fn close(place: &Place) {
    if let Err(error) = place.close() {
        tracing::warn!(%error, "a socket is left behind");
    }
}

/// Answers with an error only: nobody gets what is not ready.
async fn turn_away(listener: &UnixListener) -> io::Error {
    loop {
        if let Err(error) = listener.accept().await {
            return error;
        }
    }
}

/// Makes it, and opens the place; `None` where nothing of that kind can wait.
async fn prepare(order: &Order, kind: StandbyKind, place: &Place) -> anyhow::Result<Option<Standby>> {
    while let Some(left) = reserve::quiet_in() {
        tokio::time::sleep(left).await;
    }
    let making = async {
        match kind {
            StandbyKind::Vm => rehearse(order).await.map(|vm| Some(Standby::Rehearsed(Box::new(vm)))),
            StandbyKind::Process => wait(order).await,
        }
    };
    let made = tokio::time::timeout(PATIENCE, making).await;
    let Some(standby) = made.with_context(|| format!("not ready after {} s", PATIENCE.as_secs()))?? else {
        return Ok(None);
    };
    settle().await?;
    place.open().context("cannot open the place")?;
    Ok(Some(standby))
}

async fn wait(order: &Order) -> anyhow::Result<Option<Standby>> {
    let request = foreign::likely_vm(&order.options, &order.caller.namespace)?;
    Standby::wait(&own_folder(), &request).await.context("cannot have a process wait")
}

/// The place's folder has another name when it is a container's.
fn own_folder() -> Bundle {
    Bundle::at(PathBuf::from("."))
}

async fn rehearse(order: &Order) -> anyhow::Result<Rehearsed> {
    let (options, namespace) = (order.options.clone(), order.caller.namespace.clone());
    let made = tokio::task::spawn_blocking(move || foreign::rehearsal(&options, &namespace)).await?;
    let (spec, prepared) = made.context("cannot make a rehearsal")?;
    let plan = Plan::of(spec, Some(prepared.container), &GuestNames::alone())?;
    let standby = Rehearsed::prepare(&own_folder(), plan).await;
    // Until here the VM was to find them.
    drop(prepared.files);
    standby.context("cannot have a utility VM stand by")
}

/// Waits until no thread is left that a container's work could be given to.
async fn settle() -> anyhow::Result<()> {
    let begin = Instant::now();
    while has_workers().context("cannot look at this process's threads")? {
        if begin.elapsed() > SETTLING {
            bail!("this process's threads do not end");
        }
        tokio::time::sleep(THREAD_KEEP_ALIVE / 4).await;
    }
    Ok(())
}

fn has_workers() -> io::Result<bool> {
    for thread in fs::read_dir("/proc/self/task")? {
        match fs::read_to_string(thread?.path().join("comm")) {
            Ok(name) if name.trim_end() == serve::WORKER_THREAD => return Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound && error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(false)
}

/// What the container that has come brings, and what it gets.
struct Taken {
    claim: Claim,
    /// Where its Task API is served.
    listener: StdListener,
    /// The host's, as containerd sees them.
    mounts: File,
}

/// Makes the offer. Nothing has happened when it is not taken, but that later mounts of the host's are seen.
async fn claimed(stream: UnixStream, standby: &Standby) -> io::Result<Taken> {
    let start = stream.peer_cred()?.pid().ok_or_else(|| io::Error::other("it has no process id"))?;
    let mut brought = None;
    let socket = Path::new(SOCKETS).join(unique_name());
    let claim = reserve::receive(stream, |_| {
        let mounts = enter_mounts(start)?;
        let listener = StdListener::bind(&socket)?;
        brought = Some((listener, mounts));
        // One that has ended is nothing that could be left behind.
        let processes = standby.vmm_pids().iter().filter_map(|&pid| ProcessRecord::of(pid).ok()).collect();
        Ok(Offer { socket: socket.clone(), shim: ProcessRecord::of(std::process::id())?, processes })
    });
    match (claim.await, brought) {
        (Ok(claim), Some((listener, mounts))) => Ok(Taken { claim, listener, mounts }),
        (outcome, brought) => {
            if brought.is_some() {
                fs::remove_file(&socket)?;
            }
            Err(outcome.err().unwrap_or_else(|| io::Error::other("nothing was offered")))
        }
    }
}

/// Enters a process's mounts and makes a namespace of its own of them, as if it had been started by that process.
fn enter_mounts(process: i32) -> io::Result<File> {
    let mounts = File::open(format!("/proc/{process}/ns/mnt"))?;
    // Only who shares his working directory with no other thread may change his mounts.
    unshare(CloneFlags::CLONE_FS)?;
    setns(&mounts, CloneFlags::CLONE_NEWNS)?;
    serve::private_mounts()?;
    Ok(mounts)
}

impl Taken {
    /// Makes this process's surroundings those of the container's shim, and leaves the place to the next.
    fn furnish(&self, place: &Place) -> anyhow::Result<Bundle> {
        let bundle = Bundle::at(self.claim.bundle.clone());
        std::env::set_current_dir(bundle.path()).context("the container's bundle is gone")?;
        serve::log_to(bundle.path())?;
        if let Err(error) = move_logs(&Bundle::at(place.folder().to_owned()).vm_dir(), &bundle.vm_dir()) {
            tracing::warn!(%error, "what the hypervisor has logged until now is lost");
        }
        if let Err(error) = place.clear() {
            tracing::warn!(%error, folder = %place.folder().display(), "left behind");
        }
        Ok(bundle)
    }
}

/// Moves the VM's logs to where those of a container's are. To another file system they are copied, and what is logged from then on is in no
/// folder; how the hypervisor ended is told in any case, since this process has its log open.
fn move_logs(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_files(from, to),
        moved => moved,
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

async fn become_shim(order: Order, standby: Standby, bundle: Bundle, taken: Taken) -> anyhow::Result<()> {
    shares::keep_mounts(taken.mounts);
    let Order { caller, .. } = order;
    let flags = Flags {
        id: Some(taken.claim.id),
        namespace: Some(caller.namespace.clone()),
        address: caller.address.clone(),
        isolation: caller.isolation,
        debug: caller.debug,
        ..Flags::default()
    };
    // For who looks at the host's processes.
    if let Err(error) = sys::show_as(&[&[reserve::PROGRAM.to_owned()], &flags.serving()[..]].concat()) {
        tracing::debug!(%error, "this process is shown as one that stands by");
    }
    let ready = Ready { helper: None, standby: Some(standby) };
    let calling = Calling { isolation: caller.isolation, is_group: false, caller: Some(caller) };
    let shim = Shim::new(bundle, serve::publisher(&flags), ready, calling);
    serve::serve(&flags, &shim, taken.listener, serve::abandoned(&shim)).await
}

/// Answers when containerd has been away for longer than a new version of it takes to come. Shape: where it takes events.
async fn containerd_ends(events: Option<&str>) {
    let Some(address) = events else { return std::future::pending().await };
    let path = presence::path(address);
    let mut lost = None;
    loop {
        if let Ok(mut stream) = UnixStream::connect(path).await {
            lost = None;
            // It says nothing; that it ends is what counts, however.
            let _ = stream.read(&mut [0]).await;
        }
        if lost.get_or_insert_with(Instant::now).elapsed() > RESTART {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vms_logs_come_along_to_another_file_system_too() {
        let (here, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        for elsewhere in [here.path(), memory.path()] {
            let (from, to) = (here.path().join("place/vm"), elsewhere.join("bundle/vm"));
            fs::create_dir_all(&from).unwrap();
            fs::create_dir_all(elsewhere.join("bundle")).unwrap();
            fs::write(from.join("vmm.log"), "words").unwrap();
            move_logs(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(to.join("vmm.log")).unwrap(), "words");
        }
        assert_eq!(move_logs(&here.path().join("none"), memory.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
