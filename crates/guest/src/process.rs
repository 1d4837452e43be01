//! One process of the container: its standard streams between the kernel and the substreams, and its end.
//!
//! ```text
//! substream stdin ──▶ copy_input ──▶ pipe or terminal ──▶ process ──▶ pipe or terminal ──▶ copy_output ──▶ substream
//! ```
//!
//! All copying is the stream thread's (`stream_thread.rs` says why). Nothing is queued: a reader that does not read fills its substream's window, then the pipe, then stops the process.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use container::{Started, Stdio};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::reaper::{Exit, Reaper};
use crate::stream_thread::StreamThread;
use crate::substreams::{StdioStreams, Substream};
use crate::sys;

/// What one read takes at most; a pipe holds as much.
const BUFFER_BYTES: usize = 64 << 10;
/// How long after a process's end its output may still come from others that hold the same pipe, as in Docker.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// How long the rest of a terminal's line may take. The kernel writes a line and its end one after the other, and wakes the
/// reader in between: on a host it comes too late to see that, here it is quick enough (28 of 100 lines under TCG), and
/// clients that were made for Docker take the piece for the line. Of 300 lines under TCG on a busy host, 1 ms left 12 in pieces, 4 ms
/// left 2; nobody who types notices 8.
const LINE_END_WITHIN: Duration = Duration::from_millis(8);

/// A terminal's size in characters; 0 is unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Our ends of a process's standard streams, before the process exists.
pub struct Prepared {
    streams: StdioStreams,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Prepared {
    /// Makes the pipes, or with `terminal` leaves the streams for the terminal to come. Returns what the process gets.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(streams: StdioStreams, terminal: Option<TerminalSize>) -> io::Result<(Self, Stdio)> {
        let mut prepared = Self { streams, stdin: None, stdout: None, stderr: None };
        if let Some(TerminalSize { width, height }) = terminal {
            return Ok((prepared, Stdio::Terminal { width, height }));
        }
        let mut theirs = (None, None, None);
        if prepared.streams.stdin.is_some() {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            (theirs.0, prepared.stdin) = (Some(reader), Some(writer));
        }
        if prepared.streams.stdout.is_some() {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            (theirs.1, prepared.stdout) = (Some(writer), Some(reader));
        }
        if prepared.streams.stderr.is_some() {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            (theirs.2, prepared.stderr) = (Some(writer), Some(reader));
        }
        let (stdin, stdout, stderr) = theirs;
        Ok((prepared, Stdio::Streams { stdin, stdout, stderr }))
    }
}

/// Who serves and watches processes.
#[derive(Debug, Clone)]
pub struct Attendants {
    /// Learns of their ends.
    pub reaper: Reaper,
    /// Copies their streams.
    pub streams: StreamThread,
}

/// A process that was started. Shape: `finished` holds its end once it has ended and all its output was written.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// Kept open by the copying of its output only.
    terminal: Option<Weak<Channel>>,
    ended: watch::Receiver<Option<Instant>>,
    finished: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Takes over a process that was just started and begins to copy its streams.
    ///
    /// # Errors
    /// When its streams cannot be watched; the process then runs on without us, so the caller must end it.
    pub fn attach(started: Started, prepared: Prepared, attendants: &Attendants) -> io::Result<Self> {
        let Prepared { streams, stdin, stdout, stderr } = prepared;
        let exit = attendants.reaper.watch(started.pid);
        let thread = attendants.streams.handle();
        let watched_there = thread.enter();
        let (ended, has_ended) = watch::channel(None);
        let terminal = started.terminal.map(Channel::terminal).transpose()?.map(Arc::new);
        let channel = |fd: Option<OwnedFd>| fd.map(Channel::pipe).transpose().map(|channel| channel.map(Arc::new));
        let weak = terminal.as_ref().map(Arc::downgrade);
        let (input, output) = match terminal {
            Some(terminal) => (Some(Arc::clone(&terminal)), Some(terminal)),
            None => (channel(stdin)?, channel(stdout)?),
        };
        let input = input.zip(streams.stdin).map(|(sink, source)| thread.spawn(copy_input(source, sink)));
        let outputs = [(output, streams.stdout), (channel(stderr)?, streams.stderr)]
            .into_iter()
            .filter_map(|(source, sink)| Some(thread.spawn(copy_output(source?, sink, has_ended.clone()))))
            .collect();
        drop(watched_there);
        let (finish, finished) = watch::channel(None);
        let ended_by_now = has_ended.clone();
        tokio::spawn(run_to_end(exit, ended, Copies { input, outputs }, finish));
        Ok(Self { pid: started.pid, terminal: weak, ended: ended_by_now, finished })
    }

    /// Its number in the guest's kernel.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// True once it was reaped; its number may then be another process's.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits until it was reaped.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move { drop(ended.wait_for(Option::is_some).await) }
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// `InvalidInput` for a process without a terminal; `NotConnected` when it has gone.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let terminal = self.terminal.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        let terminal = terminal.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let size = Winsize { ws_col: size.width, ws_row: size.height, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(terminal.fd.get_ref(), size)?)
    }

    /// Its end, once all its output was written into its substreams and these were closed.
    pub fn finished(&self) -> impl Future<Output = Exit> + Send + use<> {
        let mut finished = self.finished.clone();
        async move {
            let lost = Exit { code: 255, at_ns: 0 };
            // The sender cannot go before it has sent.
            finished.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(lost)
        }
    }
}

struct Copies {
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
}

async fn run_to_end(
    exit: oneshot::Receiver<Exit>,
    ended: watch::Sender<Option<Instant>>,
    copies: Copies,
    finish: watch::Sender<Option<Exit>>,
) {
    // The reaper lives as long as the guest.
    let Ok(exit) = exit.await else { return };
    ended.send_replace(Some(Instant::now()));
    if let Some(input) = copies.input {
        input.abort();
    }
    for output in copies.outputs {
        // A copy does not panic: that would have ended the guest.
        let _ = output.await;
    }
    finish.send_replace(Some(exit));
}

/// Copies to the process until the substream ends or the process closes its side. Then this end is closed, which is the
/// process's end of file; a terminal stays open, since it is also the output.
async fn copy_input(mut source: Substream, sink: Arc<Channel>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match source.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        // The process does not want it: dropping the substream tells the host's writer.
        if sink.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Copies from the process until all writers have closed their side. Output that nobody wants is read all the same, so
/// that it stops nobody.
async fn copy_output(source: Arc<Channel>, mut sink: Option<Substream>, mut ended: watch::Receiver<Option<Instant>>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            () = grace_is_over(&mut ended) => break,
            read = source.read(&mut buffer) => read,
        };
        match read {
            Ok(0) | Err(_) => return close(sink).await,
            Ok(read) => {
                let filled = source.rest_of_line(&mut buffer, read).await;
                pass_on(&mut sink, &buffer[..filled]).await;
            }
        }
    }
    // Others hold the pipe. What is in it now may still be the process's own.
    let mut left = source.readable_bytes();
    while left > 0 {
        match source.read(&mut buffer[..left.min(BUFFER_BYTES)]).await {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                pass_on(&mut sink, &buffer[..read]).await;
                left -= read;
            }
        }
    }
    close(sink).await;
}

async fn grace_is_over(ended: &mut watch::Receiver<Option<Instant>>) {
    let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| *end);
    if let Some(end) = end {
        tokio::time::sleep_until(end + OUTPUT_GRACE).await;
    }
}

async fn pass_on(sink: &mut Option<Substream>, bytes: &[u8]) {
    if let Some(stream) = sink
        && stream.write_all(bytes).await.is_err()
    {
        *sink = None;
    }
}

async fn close(sink: Option<Substream>) {
    if let Some(mut stream) = sink {
        // The host may have closed it first.
        let _ = stream.shutdown().await;
    }
}

/// Our end of a pipe, or a terminal's master side.
#[derive(Debug)]
struct Channel {
    fd: AsyncFd<OwnedFd>,
    terminal: bool,
}

impl Channel {
    fn pipe(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: sys::watch(fd)?, terminal: false })
    }

    fn terminal(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { terminal: true, ..Self::pipe(fd)? })
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = |fd: &OwnedFd| match rustix::io::read(fd, &mut *buffer) {
            // A terminal whose last process has gone says this instead of end of file.
            Err(Errno::IO) => Ok(0),
            result => Ok(result?),
        };
        self.fd.async_io(Interest::READABLE, |fd| read(fd)).await
    }

    /// Reads more of a terminal's line, of which `filled` bytes of the buffer were read. Returns how much is filled then.
    async fn rest_of_line(&self, buffer: &mut [u8], mut filled: usize) -> usize {
        let deadline = Instant::now() + LINE_END_WITHIN;
        while self.terminal && (1..buffer.len()).contains(&filled) && buffer[filled - 1] != b'\n' {
            match timeout_at(deadline, self.read(&mut buffer[filled..])).await {
                Ok(Ok(read)) if read > 0 => filled += read,
                // An end, or a fault, is met again by the next reading.
                Ok(_) | Err(_) => break,
            }
        }
        filled
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn readable_bytes(&self) -> usize {
        rustix::io::ioctl_fionread(self.fd.get_ref())
            .ok()
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal's two ends: ours, and the process's.
    fn terminal() -> (Channel, OwnedFd) {
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(name, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY, 0o0.into()).unwrap();
        (Channel::terminal(master).unwrap(), slave)
    }

    async fn first_piece(source: &Channel) -> Vec<u8> {
        let mut buffer = vec![0; 64];
        let read = source.read(&mut buffer).await.unwrap();
        let filled = source.rest_of_line(&mut buffer, read).await;
        buffer.truncate(filled);
        buffer
    }

    #[tokio::test]
    async fn a_terminals_line_is_in_one_piece_with_its_end() {
        let (ours, theirs) = terminal();
        rustix::io::write(&theirs, b"hello").unwrap();
        let (piece, ()) = tokio::join!(first_piece(&ours), async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            rustix::io::write(&theirs, b"\n").unwrap();
        });
        assert_eq!(piece, b"hello\r\n");
    }

    #[tokio::test]
    async fn a_prompt_is_not_held_back() {
        let (ours, theirs) = terminal();
        rustix::io::write(&theirs, b"$ ").unwrap();
        let piece = tokio::time::timeout(Duration::from_secs(5), first_piece(&ours)).await;
        assert_eq!(piece.unwrap(), b"$ ");
    }

    #[tokio::test]
    async fn a_pipes_bytes_are_passed_on_as_they_come() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ours = Channel::pipe(reader).unwrap();
        rustix::io::write(&writer, b"hello").unwrap();
        let mut buffer = [0; 64];
        let read = ours.read(&mut buffer).await.unwrap();
        rustix::io::write(&writer, b"\n").unwrap();
        assert_eq!(ours.rest_of_line(&mut buffer, read).await, 5);
    }
}
