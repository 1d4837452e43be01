//! The task that moves yamux frames between the port and the substreams.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt as _};
use yamux::{Config, Connection, Mode};

/// Substreams at a time: one for control, three per process.
const MOST_SUBSTREAMS: usize = 256;
/// What all windows together may hold; yamux wants 256 KiB for each substream.
const RECEIVE_WINDOW_BYTES: usize = MOST_SUBSTREAMS * 256 * 1024;
/// Requests to open a substream that may wait.
const MOST_WAITING: usize = 64;

type Opened = Result<Compat<yamux::Stream>, String>;
type Request = oneshot::Sender<Opened>;

/// The host's side of the multiplexed port.
#[derive(Debug)]
pub(super) struct Mux {
    requests: mpsc::Sender<Request>,
    ended: watch::Receiver<Option<String>>,
}

impl Mux {
    /// Starts the task. It runs until the connection ends, with the machine at the latest.
    pub(super) fn start(port: UnixStream) -> Self {
        let (requests, receiver) = mpsc::channel(MOST_WAITING);
        let (sender, ended) = watch::channel(None);
        let mut config = Config::default();
        config.set_max_num_streams(MOST_SUBSTREAMS);
        config.set_max_connection_receive_window(Some(RECEIVE_WINDOW_BYTES));
        let connection = Connection::new(port.compat(), config, Mode::Client);
        tokio::spawn(async move {
            let mut driver = Driver { connection, receiver: Some(receiver), waiting: VecDeque::new() };
            let reason = poll_fn(|cx| driver.poll(cx)).await;
            sender.send_replace(Some(reason));
        });
        Self { requests, ended }
    }

    /// Opens a substream, or says why the connection is no more.
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
            if !self.waiting.is_empty()
                && let Poll::Ready(opened) = self.connection.poll_new_outbound(cx)
            {
                let opened = opened.map(FuturesAsyncReadCompatExt::compat).map_err(|error| error.to_string());
                // Whoever asked may have stopped waiting; dropping the substream closes it.
                let _ = self.waiting.pop_front().map(|reply| reply.send(opened));
                continue;
            }
            return match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(_))) => Poll::Ready("the guest opened a substream, which it may not".to_owned()),
                Poll::Ready(Some(Err(error))) => Poll::Ready(format!("the guest broke the protocol: {error}")),
                Poll::Ready(None) => Poll::Ready("it was closed".to_owned()),
                Poll::Pending => Poll::Pending,
            };
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
