//! What a process reads and writes, between its fifos and everybody who is attached.
//!
//! ```text
//!                     fifo            bounded, one per client
//! process --stdout--> pump ---------> attached client --> connection
//!                      \------------> log writer      --> json file
//! process <--stdin--- one pipe <----- attached clients
//! ```
//!
//! Every attached client and the log get every byte: a queue that is full holds the pump, and so the process, back.

pub mod fifo;
pub mod hijack;
pub mod input;
pub mod mux;
pub mod plain;
mod pump;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

pub use pump::{Outputs, pump};

use crate::output::{Chunk, Wanted};

/// How many chunks may wait for one client before it holds the process back: 1 MiB at most.
const PENDING_CHUNKS: usize = 16;

struct Client {
    wanted: Wanted,
    queue: mpsc::Sender<Chunk>,
}

/// The writing end of a process' standard input, as attached clients find it.
#[derive(Debug, Clone, Default)]
pub enum Stdin {
    /// The process does not run; what clients send waits in their connections.
    #[default]
    NotYet,
    /// It reads.
    Open(Arc<pipe::Sender>),
    /// Its input has ended, or it never had one: what clients send is dropped.
    Closed,
}

/// The attached clients of one process, over all its runs. Shape: a client that attaches gets the output from then on,
/// of this run or (when none is under way) of the next, and its queue ends with that run.
#[derive(Default)]
pub struct Streams {
    clients: Mutex<Vec<Arc<Client>>>,
    stdin: watch::Sender<Stdin>,
    /// Clients whose connection is still being written to.
    connected: watch::Sender<usize>,
}

/// One client's part of [`Streams`]; dropping it detaches.
pub struct Attachment {
    /// The output; ends with the run.
    pub output: mpsc::Receiver<Chunk>,
    streams: Arc<Streams>,
}

impl Attachment {
    /// Where the client's input goes.
    #[must_use]
    pub fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.output.close();
        self.streams.clients().retain(|client| !client.queue.is_closed());
        self.streams.connected.send_modify(|count| *count -= 1);
    }
}

impl Streams {
    fn clients(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client.
    #[must_use]
    pub fn attach(self: &Arc<Self>, wanted: Wanted) -> Attachment {
        let (queue, output) = mpsc::channel(PENDING_CHUNKS);
        self.connected.send_modify(|count| *count += 1);
        self.clients().push(Arc::new(Client { wanted, queue }));
        Attachment { output, streams: Arc::clone(self) }
    }

    /// Hands a chunk to everybody who wants it; waits for the slowest.
    pub async fn send(&self, chunk: &Chunk) {
        let listening: Vec<_> =
            self.clients().iter().filter(|client| client.wanted.has(chunk.source)).map(Arc::clone).collect();
        for client in listening {
            // A client that is gone removes itself.
            let _ = client.queue.send(chunk.clone()).await;
        }
    }

    /// Lets the clients' input through.
    pub fn open_stdin(&self, pipe: Option<pipe::Sender>) {
        self.stdin.send_replace(pipe.map_or(Stdin::Closed, |pipe| Stdin::Open(Arc::new(pipe))));
    }

    /// Ends the process' input, when nobody writes to it any more.
    pub fn close_stdin(&self) {
        self.stdin.send_replace(Stdin::Closed);
    }

    /// Waits until the process' input was ended by [`Streams::close_stdin`].
    pub async fn stdin_closed(&self) {
        let mut stdin = self.stdin.subscribe();
        if stdin.wait_for(|stdin| matches!(stdin, Stdin::Closed)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until there is a process, and returns its standard input, if it is open.
    pub async fn stdin(&self) -> Option<Arc<pipe::Sender>> {
        let mut stdin = self.stdin.subscribe();
        let found = stdin.wait_for(|stdin| !matches!(stdin, Stdin::NotYet)).await.ok()?;
        match &*found {
            Stdin::Open(pipe) => Some(Arc::clone(pipe)),
            Stdin::NotYet | Stdin::Closed => None,
        }
    }

    /// Ends every client's queue and waits, a short time, until they have been sent what was in it.
    pub async fn end_run(&self) {
        self.stdin.send_replace(Stdin::NotYet);
        self.clients().clear();
        let mut connected = self.connected.subscribe();
        let all_sent = connected.wait_for(|count| *count == 0);
        if tokio::time::timeout(SLOW_CLIENT, all_sent).await.is_err() {
            tracing::debug!("a client reads its output slowly; it goes on while the process counts as ended");
        }
    }
}

/// How long the end of a process waits for clients that do not read.
const SLOW_CLIENT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Source;
    use axum::body::Bytes;

    fn chunk(source: Source, text: &'static str) -> Chunk {
        Chunk { source, bytes: Bytes::from_static(text.as_bytes()) }
    }

    #[tokio::test]
    async fn each_client_gets_what_it_asked_for_until_the_run_ends() {
        let streams = Arc::new(Streams::default());
        let mut both = streams.attach(Wanted { stdout: true, stderr: true });
        let mut errors = streams.attach(Wanted { stdout: false, stderr: true });
        streams.send(&chunk(Source::Stdout, "a")).await;
        streams.send(&chunk(Source::Stderr, "b")).await;
        streams.end_run().await;
        assert_eq!(both.output.recv().await, Some(chunk(Source::Stdout, "a")));
        assert_eq!(both.output.recv().await, Some(chunk(Source::Stderr, "b")));
        assert_eq!(both.output.recv().await, None);
        assert_eq!(errors.output.recv().await, Some(chunk(Source::Stderr, "b")));
        assert_eq!(errors.output.recv().await, None);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_the_process_back_until_it_leaves() {
        let streams = Arc::new(Streams::default());
        let slow = streams.attach(Wanted { stdout: true, stderr: false });
        for _ in 0..PENDING_CHUNKS {
            streams.send(&chunk(Source::Stdout, "x")).await;
        }
        let next = chunk(Source::Stdout, "y");
        let full = tokio::time::timeout(Duration::from_millis(20), streams.send(&next)).await;
        assert!(full.is_err());
        drop(slow);
        tokio::time::timeout(Duration::from_secs(5), streams.send(&next)).await.unwrap();
    }

    #[tokio::test]
    async fn input_waits_for_the_process() {
        let streams = Arc::new(Streams::default());
        assert!(tokio::time::timeout(Duration::from_millis(20), streams.stdin()).await.is_err());
        streams.open_stdin(None);
        assert!(streams.stdin().await.is_none());
    }
}
