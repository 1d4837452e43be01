//! The thread that has our ends of the processes' pipes and terminals.
//!
//! Whoever has the other end of a pipe can keep its lock for as long as he likes: splice(2), and sendfile(2), from a socket or a file
//! hold it until there is something to splice. The kernel then has everyone wait who reads, writes, counts or closes, without
//! blocking or not, and unkillable. On the main thread that would stop the guest's answers to the host; and where the file is in
//! a folder of the host, whose content comes over the main thread, each would wait for the other for ever. So these
//! descriptors are read, written and closed by a thread of their own.
//!
//! Source: Linux fs/splice.c, `splice_file_to_pipe`; fs/pipe.c.

use std::future::pending;
use std::io;

use tokio::runtime::{Builder, Handle};

/// Shape: lives as long as the guest. It is made before the freeze point, where it sleeps in one system call.
#[derive(Debug, Clone)]
pub struct StreamThread(Handle);

impl StreamThread {
    /// Makes the thread.
    ///
    /// # Errors
    /// The kernel's.
    pub fn spawn() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name("streams".to_owned()).spawn(move || runtime.block_on(pending::<()>()))?;
        Ok(Self(handle))
    }

    /// Where descriptors are watched and copies run.
    pub fn handle(&self) -> &Handle {
        &self.0
    }
}
