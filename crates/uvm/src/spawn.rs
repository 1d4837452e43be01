//! Starts hypervisor processes from one thread that lives as long as this process.
//!
//! A VMM dies with us by its parent-death signal, and Linux sends that signal when the *thread* that made the child
//! ends: tokio's blocking threads end after ten idle seconds.

use std::io;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::thread;

use tokio::sync::oneshot;

struct Job {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

static SPAWNER: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();

/// Spawns `command` from the lasting thread.
pub(crate) async fn spawn(command: Command) -> io::Result<Child> {
    let Some(spawner) = SPAWNER.get_or_init(start_thread) else {
        return Err(io::Error::other("cannot start the thread that starts hypervisors"));
    };
    let (reply, result) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts hypervisors has ended");
    spawner.send(Job { command, reply }).map_err(|_| gone())?;
    result.await.map_err(|_| gone())?
}

fn start_thread() -> Option<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let serve = move || {
        for mut job in jobs {
            if let Err(Ok(mut unwanted)) = job.reply.send(job.command.spawn()) {
                // Whoever wanted it is gone: nothing may be left behind.
                let ended = unwanted.kill().and_then(|()| unwanted.wait());
                tracing::debug!(?ended, "ended a hypervisor that nobody waits for");
            }
        }
    };
    match thread::Builder::new().name("vmm-spawner".into()).spawn(serve) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::error!(%error, "cannot start a thread");
            None
        }
    }
}
