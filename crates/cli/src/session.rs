//! A user's streams joined to a container's: copying, terminal size, signals, detaching.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::client::Client;
use crate::client::hijack::Hijacked;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::terminal::keys::Detector;
use crate::terminal::{self, RawMode};

/// Most bytes read from the user at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What belongs to the container's side.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where to tell the terminal's size: `/containers/{id}/resize` or `/exec/{id}/resize`.
    pub resize: Url,
    /// Where to send signals that arrive here; none where they are not passed on.
    pub kill: Option<Url>,
    /// With a terminal.
    pub tty: bool,
    /// The user's input is passed on.
    pub stdin: bool,
    /// What detaches, as bytes.
    pub detach_keys: Vec<u8>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The container closed its output.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// Sessions change the user's terminal when they begin: nobody may print before this is made, and after it is dropped
/// the terminal is as it was.
pub struct Session {
    target: Target,
    client: Client,
    raw: Option<RawMode>,
}

impl Session {
    /// Prepares the terminal.
    ///
    /// # Errors
    /// When the terminal cannot be put into raw mode.
    pub fn begin(client: &Client, target: Target) -> CliResult<Self> {
        let raw = (target.tty && target.stdin && terminal::on_stdin())
            .then(RawMode::enter)
            .transpose()
            .map_err(CliError::local("cannot put the terminal into raw mode"))?;
        Ok(Self { target, client: client.clone(), raw })
    }

    /// Copies until the container closes its output or the user detaches.
    ///
    /// # Errors
    /// When the connection breaks or standard output is closed.
    pub async fn run(self, streams: Hijacked) -> CliResult<Ended> {
        let watcher = tokio::spawn(watch(self.client.clone(), self.target.clone()));
        let (detached, typed_keys) = oneshot::channel();
        let detector = Detector::new(if self.target.tty { self.target.detach_keys.clone() } else { Vec::new() });
        let input = self.target.stdin.then(|| tokio::spawn(pass_input(streams.input, detector, detached)));
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        let ended = tokio::select! {
            copied = streams.output.copy(&mut out, &mut err) => {
                copied.map(|()| Ended::Closed).map_err(CliError::local("the container's output broke off"))
            }
            Ok(()) = typed_keys => Ok(Ended::Detached),
        };
        watcher.abort();
        if let Some(input) = input {
            input.abort();
        }
        drop(self.raw);
        ended
    }
}

/// Copies standard input. At its end the container's is closed; the detach keys end the session instead.
async fn pass_input(
    mut to: WriteHalf<TokioIo<hyper::upgrade::Upgraded>>,
    mut detector: Detector,
    detached: oneshot::Sender<()>,
) -> io::Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = stdin.read(&mut chunk).await?;
        if count == 0 {
            to.shutdown().await?;
            // Whoever drops the sender ends nothing: the session goes on until the output's end.
            return std::future::pending().await;
        }
        let (passed, found) = detector.feed(&chunk[..count]);
        to.write_all(&passed).await?;
        to.flush().await?;
        if found {
            // The session may have ended by itself in the same moment.
            let _ = detached.send(());
            return Ok(());
        }
    }
}

/// Tells the container of the terminal's size, now and whenever it changes, and passes signals on.
async fn watch(client: Client, target: Target) {
    let client = Arc::new(client);
    let resizing = async {
        if !target.tty {
            return std::future::pending::<()>().await;
        }
        let Ok(mut changed) = signal(SignalKind::window_change()) else { return std::future::pending().await };
        loop {
            resize(&client, &target.resize).await;
            changed.recv().await;
        }
    };
    let signals = async {
        if let Some(kill) = &target.kill {
            pass_signals(&client, kill).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::join!(resizing, signals);
}

/// Sends the terminal's present size. A container that does not run yet, or no more, refuses; that is no fault.
async fn resize(client: &Client, url: &Url) {
    if let Some((height, width)) = terminal::size() {
        let url = url.clone().with("h", &height.to_string()).with("w", &width.to_string());
        let _ = client.command(&url).await;
    }
}

/// Makes a program draw its screen anew for whoever attached: it does so when the size changes, so it changes twice.
pub async fn redraw(client: &Client, url: &Url) {
    if let Some((height, width)) = terminal::size() {
        let (height, width) = (height.saturating_add(1), width.saturating_add(1));
        let url = url.clone().with("h", &height.to_string()).with("w", &width.to_string());
        // As in `resize`.
        let _ = client.command(&url).await;
    }
}

/// The signals that are passed on, with their names. Those that stop, continue or concern the terminal are not.
const PASSED: [(SignalKind, &str); 7] = [
    (SignalKind::hangup(), "HUP"),
    (SignalKind::interrupt(), "INT"),
    (SignalKind::quit(), "QUIT"),
    (SignalKind::terminate(), "TERM"),
    (SignalKind::user_defined1(), "USR1"),
    (SignalKind::user_defined2(), "USR2"),
    (SignalKind::alarm(), "ALRM"),
];

async fn pass_signals(client: &Arc<Client>, kill: &Url) {
    for (kind, name) in PASSED {
        let Ok(mut arrived) = signal(kind) else { continue };
        let (client, url) = (Arc::clone(client), kill.clone().with("signal", name));
        tokio::spawn(async move {
            while arrived.recv().await.is_some() {
                // A container that does not run cannot be signalled; it is about to end, or to start.
                let _ = client.command(&url).await;
            }
        });
    }
}
