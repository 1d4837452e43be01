//! yamux over the port: takes the substreams that the host opens, reads their headers, and keeps stdio substreams until
//! a process claims them.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader, BufWriter};
use proto::gcs::{StreamHeader, StreamKind};
use tokio::sync::{Notify, mpsc};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, Mode};

/// A virtio console takes at most this much in one write; several frames then cost one notification of the host.
const WRITE_BUFFER_BYTES: usize = 32 << 10;
/// A virtio console gives at most a page in one read.
const READ_BUFFER_BYTES: usize = 4 << 10;

/// Folders of the host that a container may have; the host bounds them before.
const MOST_SHARES: u32 = 64;

/// Substreams that the host may have open, closed ones that yamux has not taken off its list yet among them: more than the
/// host ever asks for, since one more ends the connection.
const MOST_SUBSTREAMS: usize = 2048;

/// A substream as tokio's traits want it.
pub type Substream = Compat<yamux::Stream>;

/// Where substreams go that belong to no process.
#[derive(Debug, Clone)]
pub struct Destinations {
    /// Carry ttrpc.
    pub control: mpsc::UnboundedSender<Substream>,
    /// Carry one operation on the container's files each.
    pub files: mpsc::UnboundedSender<Substream>,
    /// Carry one connection to the guest's loopback each.
    pub ports: mpsc::UnboundedSender<(u32, Substream)>,
}

/// The stdio substreams that no process has claimed.
#[derive(Debug, Clone, Default)]
pub struct Substreams(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    waiting: Mutex<Waiting>,
    header_read: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    streams: HashMap<StreamHeader, yamux::Stream>,
    /// Accepted substreams whose header has not been read yet.
    without_header: usize,
}

/// The stdio substreams of one process; one that the host did not open is `None`.
#[derive(Debug)]
pub struct StdioStreams {
    /// Standard input, or what is typed into the terminal.
    pub stdin: Option<Substream>,
    /// Standard output, or the terminal's output.
    pub stdout: Option<Substream>,
    /// Standard error.
    pub stderr: Option<Substream>,
}

impl Substreams {
    /// Takes a process's substreams. The host opens them before it makes the call that starts the process, and the port
    /// keeps the order, so all of them have been accepted by now; this waits until their headers have been read.
    pub async fn claim(&self, process: u32) -> StdioStreams {
        self.headers_read().await;
        let mut waiting = self.lock();
        let mut take =
            |kind| waiting.streams.remove(&StreamHeader { kind, process }).map(FuturesAsyncReadCompatExt::compat);
        StdioStreams {
            stdin: take(StreamKind::Stdin),
            stdout: take(StreamKind::Stdout),
            stderr: take(StreamKind::Stderr),
        }
    }

    /// Takes the substreams of so many folders of the host, by number from `first` on; those that the host did not open are missing.
    pub async fn claim_shares(&self, first: u32, count: u32) -> Vec<Substream> {
        self.headers_read().await;
        let mut waiting = self.lock();
        let take = |process| waiting.streams.remove(&StreamHeader { kind: StreamKind::Share, process });
        (first..first.saturating_add(count.min(MOST_SHARES)))
            .map_while(take)
            .map(FuturesAsyncReadCompatExt::compat)
            .collect()
    }

    /// Drops every substream that no process has claimed, which resets it: the next container's processes have the same
    /// numbers. Waits as [`Substreams::claim`] does, so that all that were opened before the call are dropped.
    pub async fn forget(&self) {
        self.headers_read().await;
        self.lock().streams.clear();
    }

    async fn headers_read(&self) {
        loop {
            let header_read = self.0.header_read.notified();
            if self.lock().without_header == 0 {
                return;
            }
            header_read.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one substream's header and puts it where it belongs. A substream that says nothing sensible is dropped, which
    /// resets it.
    async fn sort(self, mut stream: yamux::Stream, destinations: Destinations) {
        let mut header = [0; StreamHeader::LEN];
        let read = stream.read_exact(&mut header).await;
        match read.map(|()| StreamHeader::decode(header)) {
            Ok(Ok(StreamHeader { kind: StreamKind::Control, .. })) => {
                // The receiver lives as long as the guest.
                let _ = destinations.control.send(stream.compat());
            }
            Ok(Ok(StreamHeader { kind: StreamKind::Files, .. })) => {
                let _ = destinations.files.send(stream.compat());
            }
            Ok(Ok(StreamHeader { kind: StreamKind::Port, process })) => {
                let _ = destinations.ports.send((process, stream.compat()));
            }
            Ok(Ok(header)) => drop(self.lock().streams.insert(header, stream)),
            Ok(Err(error)) => tracing::warn!("substream dropped: {error}"),
            Err(error) => tracing::warn!("substream ended within its header: {error}"),
        }
        self.lock().without_header -= 1;
        self.0.header_read.notify_waiters();
    }
}

/// Drives the connection until the host closes it. Substreams of processes go into the table, the others to `destinations`.
///
/// # Errors
/// When the host breaks yamux's rules or the port fails.
pub async fn drive(
    port: impl AsyncRead + AsyncWrite + Unpin,
    substreams: &Substreams,
    destinations: Destinations,
) -> Result<(), ConnectionError> {
    let buffered = BufReader::with_capacity(READ_BUFFER_BYTES, BufWriter::with_capacity(WRITE_BUFFER_BYTES, port));
    let mut config = Config::default();
    config.set_max_num_streams(MOST_SUBSTREAMS);
    let mut connection = Connection::new(buffered, config, Mode::Server);
    while let Some(stream) = poll_fn(|context| connection.poll_next_inbound(context)).await {
        let stream = stream?;
        substreams.lock().without_header += 1;
        tokio::spawn(substreams.clone().sort(stream, destinations.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::io::AsyncWriteExt;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    /// The host's side: opens a substream and writes its header.
    async fn open(connection: &mut Connection<Compat<tokio::io::DuplexStream>>, header: StreamHeader) -> yamux::Stream {
        let mut stream = poll_fn(|context| connection.poll_new_outbound(context)).await.unwrap();
        // The connection does its work when it is polled.
        let header = header.encode();
        let mut written = std::pin::pin!(stream.write_all(&header));
        poll_fn(|context| {
            assert!(connection.poll_next_inbound(context).is_pending());
            written.as_mut().poll(context)
        })
        .await
        .unwrap();
        let _ = poll_fn(|context| std::task::Poll::Ready(connection.poll_next_inbound(context))).await;
        stream
    }

    #[tokio::test]
    async fn forgotten_substreams_are_nobodys_and_their_numbers_are_free() {
        let (host, guest) = tokio::io::duplex(1 << 16);
        let mut host = Connection::new(host.compat(), Config::default(), Mode::Client);
        let substreams = Substreams::default();
        let (control, _controls) = mpsc::unbounded_channel();
        let (files, _files) = mpsc::unbounded_channel();
        let (ports, _ports) = mpsc::unbounded_channel();
        let destinations = Destinations { control, files, ports };
        let table = substreams.clone();
        tokio::spawn(async move { drive(guest.compat(), &table, destinations).await });
        let header = StreamHeader { kind: StreamKind::Stdout, process: 0 };
        let _old = open(&mut host, header).await;
        settle().await;
        assert_eq!(substreams.lock().streams.len(), 1);
        substreams.forget().await;
        assert!(substreams.claim(0).await.stdout.is_none());
        let _new = open(&mut host, header).await;
        settle().await;
        assert!(substreams.claim(0).await.stdout.is_some());
    }

    /// Lets the guest's tasks run up to where they wait.
    async fn settle() {
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }
}
