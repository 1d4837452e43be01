//! A process's standard streams: the caller's fifos on one side, the process on the other.
//!
//! All is copied: between the fifos and a process's pipes, by a thread of its own (`thread.rs` says why), or its terminal, or the
//! streams of a utility VM. Only files and logging programs a process gets directly. The shim holds for itself
//! - a read end of each output fifo until Delete, so that a caller that dies neither kills the writer (SIGPIPE) nor loses
//!   what it has not read; while nobody reads, the writer waits as at any full pipe;
//! - a write end of the input fifo: for our engine until CloseIO, so that an engine that dies is no end of file for the
//!   process; for a foreign containerd until the first writer has closed it, as its own shims do.
//!
//! Source: containerd core/runtime/v2/README.md, "IO"; containerd `cmd/containerd-shim-runc-v2/process/io.go`.

mod logger;
mod pipes;
mod reader;
mod thread;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::ErrorKind;
use rustix::fs::{FileType, Mode, OFlags, inotify};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::sys;

use logger::{Logger, Program};
pub use logger::{Owner, WORD as LOGGER_WORD, become_program as become_logger};
use thread::StreamThread;

/// How long an output without a byte is waited for after its process has ended, because a process that it left behind
/// still has it open.
const LEAKED_WRITER: Duration = Duration::from_secs(2);
/// How long after a process's end nobody looks for callers that open its outputs only then: most tasks are deleted by that
/// time, and giving the look-out up costs the kernel some 15 ms.
const LATE_READER: Duration = Duration::from_millis(500);
/// Of each copying direction, bytes.
const COPY_BUFFER: usize = 16 * 1024;

/// The paths of a Create or Exec request; an empty one is /dev/null.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// Standard input, or what is typed.
    pub stdin: String,
    /// Standard output, or the terminal's output.
    pub stdout: String,
    /// Standard error; empty with a terminal.
    pub stderr: String,
    /// The process has a terminal.
    pub terminal: bool,
    /// What ends the input.
    pub stdin_end: StdinEnd,
    /// For a logging program.
    pub owner: Owner,
}

/// What ends a process's input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StdinEnd {
    /// Only CloseIO.
    Request,
    /// CloseIO, or that a writer has closed the fifo.
    #[default]
    Writer,
}

/// A stream that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A fifo or file.
    #[error("cannot open {stream} {path:?}")]
    Open {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// Its path.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A logging program.
    #[error("cannot start the logging program {uri:?}")]
    Logger {
        /// Its URI.
        uri: String,
        /// What the system says.
        source: io::Error,
    },
    /// Another scheme.
    #[error("{stream} {uri:?}: only fifos, file:// and binary:// are supported")]
    Scheme {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// What was given.
        uri: String,
    },
}

impl StdioError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { source, .. } | Self::Logger { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::Open { .. } | Self::Logger { .. } => ErrorKind::Internal,
            Self::Scheme { .. } => ErrorKind::NotImplemented,
        }
    }
}

#[derive(Debug)]
struct Input {
    read: OwnedFd,
    /// Absent when it is no fifo.
    hold: Option<OwnedFd>,
    /// Readable once a writer has closed the fifo; only with [`StdinEnd::Writer`].
    closing: Option<OwnedFd>,
}

#[derive(Debug)]
struct Output {
    write: OwnedFd,
    /// Absent when it is no fifo.
    hold: Option<OwnedFd>,
}

/// The caller's side of a process's streams, opened.
#[derive(Debug)]
pub struct Fifos {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    logger: Option<Logger>,
    /// A foreign containerd's client reads them.
    is_foreign: bool,
}

impl Fifos {
    /// Opens what the paths name; waits for a logging program to be ready, and a while for a foreign containerd's client to read,
    /// but never for our engine. When: within the runtime.
    ///
    /// # Errors
    /// [`StdioError`] for the first that cannot be opened.
    pub async fn open(paths: &StdioPaths) -> Result<Self, StdioError> {
        let stdin = open_input(&paths.stdin, paths.stdin_end)?;
        // One program for both outputs.
        if let Some(rest) = paths.stdout.strip_prefix("binary://") {
            let started = Logger::start(&Program::parse(rest), &paths.owner).await;
            let started = started.map_err(|source| StdioError::Logger { uri: paths.stdout.clone(), source })?;
            let output = |write| Some(Output { write, hold: None });
            let stderr = if paths.terminal { None } else { output(started.stderr) };
            let (stdout, logger) = (output(started.stdout), Some(started.logger));
            return Ok(Self { stdin, stdout, stderr, logger, is_foreign: false });
        }
        let is_foreign = paths.stdin_end == StdinEnd::Writer;
        let stdout = open_output("stdout", &paths.stdout, is_foreign).await?;
        let stderr = if paths.terminal { None } else { open_output("stderr", &paths.stderr, is_foreign).await? };
        Ok(Self { stdin, stdout, stderr, logger: None, is_foreign })
    }

    /// True when there is an input.
    #[must_use]
    pub fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    /// Copies between the fifos and a process's ends. When: within the runtime.
    ///
    /// Shape: `stdin` is shut down at the end of the input; the others are read to their end of file.
    ///
    /// # Errors
    /// A fifo cannot be watched.
    pub fn copy(self, ends: ProcessEnds) -> io::Result<Streams> {
        let mut streams = Streams::new(self.logger);
        if let (Some(input), Some(sink)) = (self.stdin, ends.stdin) {
            let read = streams.hold_input(input)?;
            streams.spawn(copy_input(reader(read)?, sink));
        }
        let mut holds = Vec::new();
        for (output, source) in [(self.stdout, ends.stdout), (self.stderr, ends.stderr)] {
            let Some(source) = source else { continue };
            let exited = streams.exited.clone();
            let sink = match output {
                Some(Output { write, hold }) => {
                    holds.extend(hold);
                    writer(write)?
                }
                // Nobody wants it, but the process must be able to write it.
                None => Box::pin(tokio::io::sink()),
            };
            streams.outputs.lock().unwrap_or_else(|e| e.into_inner()).spawn(copy_output(source, sink, exited));
        }
        streams.output_holds = Arc::new(holds);
        streams.is_foreign = self.is_foreign;
        Ok(streams)
    }
}

/// A readable stream of a process, or the caller's input.
pub type Source = std::pin::Pin<Box<dyn AsyncRead + Send>>;
/// A writable stream of a process, or the caller's output.
pub type Sink = std::pin::Pin<Box<dyn AsyncWrite + Send>>;

/// A process's ends of its streams, to be copied.
#[derive(Default)]
pub struct ProcessEnds {
    /// What the process reads.
    pub stdin: Option<Sink>,
    /// What it writes.
    pub stdout: Option<Source>,
    /// What it writes for errors.
    pub stderr: Option<Source>,
}

/// What the shim keeps of a process's streams while the process is known. Dropping it ends all copying.
#[derive(Debug)]
pub struct Streams {
    stdin_hold: Arc<Mutex<Option<OwnedFd>>>,
    output_holds: Arc<Vec<OwnedFd>>,
    is_foreign: bool,
    exited: CancellationToken,
    outputs: Mutex<JoinSet<()>>,
    /// Copying of the input, and what waits for callers that come or go.
    others: Mutex<JoinSet<()>>,
    /// Has our ends of the process's pipes, if it has any.
    thread: Option<StreamThread>,
    /// What reads the outputs, if that is a program of the caller's.
    _logger: Option<Logger>,
}

impl Streams {
    fn new(logger: Option<Logger>) -> Self {
        Self {
            thread: None,
            _logger: logger,
            stdin_hold: Arc::default(),
            output_holds: Arc::default(),
            is_foreign: false,
            exited: CancellationToken::new(),
            outputs: Mutex::default(),
            others: Mutex::default(),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.others.lock().unwrap_or_else(|e| e.into_inner()).spawn(task);
    }

    /// Keeps the input open, and answers the end to read.
    fn hold_input(&mut self, input: Input) -> io::Result<OwnedFd> {
        self.stdin_hold = Arc::new(Mutex::new(input.hold));
        if let Some(closing) = input.closing {
            let (closing, hold) = (FileEvents::new(closing)?, Arc::clone(&self.stdin_hold));
            self.spawn(async move {
                // Whatever the event is, it is the only one that was asked for.
                if closing.next().await.is_ok() {
                    drop(hold.lock().unwrap_or_else(|e| e.into_inner()).take());
                }
            });
        }
        Ok(input.read)
    }

    /// Says that the process has its ends of its pipes now.
    pub fn process_started(&self) {
        if let Some(thread) = &self.thread {
            thread.process_started();
        }
    }

    /// Ends the input: the process reads what is still in the fifo, then end of file. May be repeated.
    pub fn close_stdin(&self) {
        drop(self.stdin_hold.lock().unwrap_or_else(|e| e.into_inner()).take());
    }

    /// Says that the process has ended, and waits until all of its output has been copied.
    ///
    /// When: after the process's end. An output that a process left behind still holds open counts as complete when it has
    /// been silent for two seconds; a caller that reads slowly is waited for without bound.
    pub async fn complete(&self) {
        self.exited.cancel();
        let mut outputs = std::mem::take(&mut *self.outputs.lock().unwrap_or_else(|e| e.into_inner()));
        while outputs.join_next().await.is_some() {}
        if self.is_foreign {
            reader::drained(&self.output_holds).await;
        }
        if !self.output_holds.is_empty() {
            let holds = Arc::clone(&self.output_holds);
            self.spawn(async move {
                tokio::time::sleep(LATE_READER).await;
                if let Err(error) = wake_late_readers(&holds).await {
                    tracing::debug!(%error, "a caller that opens an output late may wait for its end in vain");
                }
            });
        }
    }
}

/// An inotify instance. To close one, the kernel waits for a grace period, some 15 ms: a thread does it.
struct FileEvents(Option<AsyncFd<OwnedFd>>);

impl FileEvents {
    fn new(inotify: OwnedFd) -> io::Result<Self> {
        Ok(Self(Some(sys::watch(inotify, Interest::READABLE)?)))
    }

    fn get(&self) -> &AsyncFd<OwnedFd> {
        self.0.as_ref().expect("it is taken only by drop")
    }

    /// Waits for events; those that are there already count only if they came after the last call.
    async fn next(&self) -> io::Result<()> {
        self.get().readable().await?.clear_ready();
        Ok(())
    }
}

impl Drop for FileEvents {
    fn drop(&mut self) {
        let inotify = self.0.take().map(AsyncFd::into_inner);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(inotify));
        }
    }
}

/// Lets a reader that opens an output after its last writer has gone see the end of file.
///
/// Linux tells a fifo's reader that there is no writer only if one was there since the reader opened it: without this, a
/// caller that comes late and waits by poll(2) waits for ever. So each open of a reader is answered by a writer that opens
/// and closes. Source: `fifo_open` and `pipe_poll` in fs/pipe.c.
async fn wake_late_readers(holds: &[OwnedFd]) -> io::Result<()> {
    let paths: Vec<String> = holds.iter().map(|hold| format!("/proc/self/fd/{}", hold.as_raw_fd())).collect();
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    for path in &paths {
        inotify::add_watch(&events, path, inotify::WatchFlags::OPEN)?;
    }
    let events = FileEvents::new(events)?;
    let mut buffer = [0; 512];
    loop {
        for path in &paths {
            drop(open(path, OFlags::WRONLY | OFlags::NONBLOCK)?);
        }
        // Our own opens are events too. A reader that opened beside one of them has seen that writer go.
        while rustix::io::read(events.get(), &mut buffer).is_ok() {}
        events.next().await?;
    }
}

async fn copy_input(mut source: Source, mut sink: Sink) {
    let mut buffer = vec![0; COPY_BUFFER];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => {
                if let Err(error) = sink.write_all(&buffer[..count]).await {
                    tracing::debug!(%error, "the process no longer reads its input");
                    return;
                }
                // A utility VM's stream gathers what is written until it is flushed.
                if sink.flush().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the caller's input cannot be read");
                break;
            }
        }
    }
    if let Err(error) = sink.shutdown().await {
        tracing::debug!(%error, "the process's input cannot be closed");
    }
}

async fn copy_output(mut source: Source, mut sink: Sink, exited: CancellationToken) {
    let mut buffer = vec![0; COPY_BUFFER];
    loop {
        let read = tokio::select! {
            biased;
            read = source.read(&mut buffer) => read,
            () = silence_after(&exited) => {
                tracing::info!("a process that was left behind holds an output open; not waiting for it");
                return;
            }
        };
        match read {
            Ok(0) => break,
            Ok(count) => {
                if let Err(error) = sink.write_all(&buffer[..count]).await {
                    tracing::warn!(%error, "the caller's output cannot be written");
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the process's output ended with an error");
                break;
            }
        }
    }
    // A file sink writes in the background.
    if let Err(error) = sink.flush().await {
        tracing::warn!(%error, "the caller's output cannot be written");
    }
}

async fn silence_after(exited: &CancellationToken) {
    exited.cancelled().await;
    tokio::time::sleep(LEAKED_WRITER).await;
}

fn reader(fd: OwnedFd) -> io::Result<Source> {
    if is_fifo(&fd)? {
        set_nonblocking(&fd)?;
        return Ok(Box::pin(pipe::Receiver::from_owned_fd(fd)?));
    }
    Ok(Box::pin(tokio::fs::File::from_std(fd.into())))
}

fn writer(fd: OwnedFd) -> io::Result<Sink> {
    if is_fifo(&fd)? {
        set_nonblocking(&fd)?;
        return Ok(Box::pin(pipe::Sender::from_owned_fd(fd)?));
    }
    Ok(Box::pin(tokio::fs::File::from_std(fd.into())))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

fn is_fifo(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo)
}

enum Target {
    Path(PathBuf),
    /// A file that is made when it is missing, and appended to.
    File(PathBuf),
}

fn target(stream: &'static str, text: &str) -> Result<Option<Target>, StdioError> {
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(match text.split_once("://") {
        None => Target::Path(text.into()),
        Some(("fifo", path)) => Target::Path(path.into()),
        Some(("file", path)) => Target::File(path.into()),
        Some(_) => return Err(StdioError::Scheme { stream, uri: text.to_owned() }),
    }))
}

fn open(path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path.as_ref(), flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::from_raw_mode(0o600))?)
}

/// The hold comes first: with it there, the second open of a fifo never waits, and its descriptor blocks as a process
/// expects of its streams.
fn open_input(text: &str, end: StdinEnd) -> Result<Option<Input>, StdioError> {
    let stream = "stdin";
    let Some(Target::Path(path) | Target::File(path)) = target(stream, text)? else { return Ok(None) };
    let opened = || -> io::Result<Input> {
        let hold = open(&path, OFlags::RDWR | OFlags::NONBLOCK)?;
        if !is_fifo(&hold)? {
            return Ok(Input { read: open(&path, OFlags::RDONLY)?, hold: None, closing: None });
        }
        // Before there is a reader: a writer that waits for one cannot have come and gone unseen.
        let closing = match end {
            StdinEnd::Request => None,
            StdinEnd::Writer => {
                let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&events, &path, inotify::WatchFlags::CLOSE_WRITE)?;
                Some(events)
            }
        };
        Ok(Input { read: open(&path, OFlags::RDONLY)?, hold: Some(hold), closing })
    };
    opened().map(Some).map_err(|source| StdioError::Open { stream, path: text.to_owned(), source })
}

async fn open_output(stream: &'static str, text: &str, is_foreign: bool) -> Result<Option<Output>, StdioError> {
    let opened = match target(stream, text)? {
        None => return Ok(None),
        Some(Target::File(path)) => {
            open(&path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE).map(|write| Output { write, hold: None })
        }
        Some(Target::Path(path)) => {
            let _reader = if is_foreign { reader::awaited(&path).await } else { None };
            open_fifo_output(&path)
        }
    };
    opened.map(Some).map_err(|source| StdioError::Open { stream, path: text.to_owned(), source })
}

fn open_fifo_output(path: &Path) -> io::Result<Output> {
    let hold = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let hold = if is_fifo(&hold)? { Some(hold) } else { None };
    Ok(Output { write: open(path, OFlags::WRONLY)?, hold })
}

#[cfg(test)]
mod tests;
