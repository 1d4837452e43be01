//! The thread that has our ends of a process's pipes.
//!
//! Whoever has the other end of a pipe can keep its lock for as long as he likes: splice(2), and sendfile(2), from a socket or a
//! terminal hold it until there is something to splice; `cat /dev/ptmx` does. The kernel then has everyone wait who reads, writes,
//! counts, opens or closes, without blocking or not, and unkillable. So no fifo of a caller is given to a process, and what stops is
//! one thread of the container's own shim, until the container is killed.
//!
//! Source: Linux fs/splice.c, `splice_file_to_pipe`; fs/pipe.c.

use std::io;
use std::os::fd::OwnedFd;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Shape: one for each process; ends, with all that runs on it, when this is dropped, without being waited for.
#[derive(Debug)]
pub struct StreamThread {
    handle: Handle,
    /// The process has been started, or never will be.
    started: DropGuard,
    _ended: DropGuard,
}

impl StreamThread {
    /// Makes the thread. It keeps `theirs`, the process's ends, until [`StreamThread::process_started`], so that whoever starts the
    /// process never is the last to close one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn spawn(theirs: Vec<OwnedFd>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (started, ended) = (CancellationToken::new(), CancellationToken::new());
        let (has_started, has_ended) = (started.clone(), ended.clone());
        std::thread::Builder::new().name("streams".to_owned()).spawn(move || {
            runtime.spawn(async move {
                has_started.cancelled().await;
                drop(theirs);
            });
            runtime.block_on(has_ended.cancelled());
        })?;
        Ok(Self { handle, started: started.drop_guard(), _ended: ended.drop_guard() })
    }

    /// Lets go of the process's ends.
    pub fn process_started(&self) {
        self.started.token().cancel();
    }

    /// Where copies run.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Until it is dropped, descriptors are watched there.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }
}
