//! The task that moves yamux frames between the port and the substreams.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt as _};
use yamux::{Config, Connection, Mode};

/// Substreams that may be open at a time: one for control, up to three for each process, one for each of the host's folders.
/// A substream more waits until another one is closed. yamux opens no 257th that the other side has not acknowledged, which
/// it does with its first word: a process that says nothing does not.
pub(super) const MOST_SUBSTREAMS: usize = 250;
/// What yamux is told, which ends the whole connection over a substream more. It takes a closed one off its list only when
/// it gets round to it.
const YAMUX_SUBSTREAMS: usize = 2 * MOST_SUBSTREAMS;
/// What all windows together may hold; yamux wants 256 KiB for each substream, and with no more than that none of them grows.
const RECEIVE_WINDOW_BYTES: usize = YAMUX_SUBSTREAMS * 256 * 1024;
/// Requests to open a substream that may wait.
const MOST_WAITING: usize = 64;

type Opened = Result<Compat<yamux::Stream>, String>;
type Request = oneshot::Sender<Opened>;

/// Room for one substream. Shape: it is dropped after its substream.
pub(super) type Room = OwnedSemaphorePermit;

/// The host's side of the multiplexed port.
#[derive(Debug)]
pub(super) struct Mux {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    ended: watch::Receiver<Option<String>>,
}

impl Mux {
    /// Starts the task. It runs until the connection ends, with the machine at the latest.
    pub(super) fn start(port: UnixStream) -> Self {
        let (requests, receiver) = mpsc::channel(MOST_WAITING);
        let (sender, ended) = watch::channel(None);
        let mut config = Config::default();
        config.set_max_num_streams(YAMUX_SUBSTREAMS);
        config.set_max_connection_receive_window(Some(RECEIVE_WINDOW_BYTES));
        let connection = Connection::new(port.compat(), config, Mode::Client);
        tokio::spawn(async move {
            let mut driver = Driver { connection, receiver: Some(receiver), waiting: VecDeque::new() };
            let reason = poll_fn(|cx| driver.poll(cx)).await;
            sender.send_replace(Some(reason));
        });
        Self { requests, room: Arc::new(Semaphore::new(MOST_SUBSTREAMS)), ended }
    }

    /// Waits until a substream may be opened.
    pub(super) async fn room(&self) -> Room {
        match Arc::clone(&self.room).acquire_owned().await {
            Ok(room) => room,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Opens a substream, or says why the connection is no more. When: there is [`Mux::room`] for it.
    pub(super) async fn open(&self) -> Opened {
        let (reply, opened) = oneshot::channel();
        if self.requests.send(reply).await.is_ok()
            && let Ok(opened) = opened.await
        {
            return opened;
        }
        Err(self.ended().await)
    }

    /// Why the connection ended, if it has.
    pub(super) fn reason(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits for the connection's end and says why.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its task was stopped".to_owned(),
        }
    }
}

struct Driver {
    connection: Connection<Compat<UnixStream>>,
    receiver: Option<mpsc::Receiver<Request>>,
    waiting: VecDeque<Request>,
}

impl Driver {
    /// Moves what can be moved. Ready with the reason when the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            self.take_requests(cx);
            // First, since it takes closed substreams off yamux's list.
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(_))) => {
                    return Poll::Ready("the guest opened a substream, which it may not".to_owned());
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(format!("the guest broke the protocol: {error}")),
                Poll::Ready(None) => return Poll::Ready("it was closed".to_owned()),
                Poll::Pending => {}
            }
            if self.waiting.is_empty() {
                return Poll::Pending;
            }
            let Poll::Ready(opened) = self.connection.poll_new_outbound(cx) else { return Poll::Pending };
            let opened = opened.map(FuturesAsyncReadCompatExt::compat).map_err(|error| error.to_string());
            // Whoever asked may have stopped waiting; dropping the substream closes it.
            let _ = self.waiting.pop_front().map(|reply| reply.send(opened));
        }
    }

    fn take_requests(&mut self, cx: &mut Context<'_>) {
        while self.waiting.len() < MOST_WAITING
            && let Some(receiver) = &mut self.receiver
        {
            match receiver.poll_recv(cx) {
                Poll::Ready(Some(request)) => self.waiting.push_back(request),
                Poll::Ready(None) => self.receiver = None,
                Poll::Pending => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A guest that takes every substream and reads none.
    async fn accept_all(port: UnixStream) {
        let mut config = Config::default();
        config.set_max_num_streams(2048);
        let mut connection = Connection::new(port.compat(), config, Mode::Server);
        let mut taken = Vec::new();
        while let Some(Ok(stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
            taken.push(stream);
        }
    }

    #[tokio::test]
    async fn a_substream_too_many_waits_and_ends_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = tokio::spawn(accept_all(theirs));
        let mux = Mux::start(ours);
        let mut open = Vec::new();
        for _ in 0..MOST_SUBSTREAMS {
            let room = mux.room().await;
            let mut substream = mux.open().await.unwrap();
            // The guest learns of it by its first bytes.
            tokio::io::AsyncWriteExt::write_all(&mut substream, b"x").await.unwrap();
            open.push((substream, room));
        }
        assert!(tokio::time::timeout(Duration::from_millis(20), mux.room()).await.is_err());
        // Replaced at once, again and again: closed ones leave yamux's list in time.
        for _ in 0..YAMUX_SUBSTREAMS {
            drop(open.pop());
            let room = mux.room().await;
            open.push((mux.open().await.unwrap(), room));
        }
        assert_eq!(mux.reason(), None);
        guest.abort();
    }
}
