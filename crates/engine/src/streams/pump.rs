//! Copies a process' output from its fifos to the log and the attached clients.

use std::io;
use std::os::fd::OwnedFd;

use axum::body::Bytes;
use bytes::BytesMut;
use rustix::pipe::{PipeFlags, SpliceFlags};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::Streams;
use crate::log::LogSink;
use crate::output::{Chunk, Source};

/// The reading ends of a process' output.
pub struct Outputs {
    open: Vec<Output>,
    /// A pipe of the engine's own, for looking at output that stays in its fifo.
    mirror: Option<Mirror>,
}

struct Output {
    source: Source,
    pipe: pipe::Receiver,
}

/// Output that was read. Shape: while `kept` is not zero, the fifo still holds so many bytes of it.
struct Taken {
    chunk: Chunk,
    index: usize,
    kept: usize,
}

impl Outputs {
    /// From the ends that there are.
    #[must_use]
    pub fn new(ends: [(Source, Option<pipe::Receiver>); 2]) -> Self {
        let open = ends.into_iter().filter_map(|(source, pipe)| Some(Output { source, pipe: pipe? })).collect();
        Self { open, mirror: None }
    }

    /// What is read stays in the fifo until [`Outputs::consume`]: an engine that dies in between loses nothing.
    fn keep_until_logged(&mut self) {
        match Mirror::new() {
            Ok(mirror) => self.mirror = Some(mirror),
            Err(error) => tracing::warn!(%error, "an engine that is killed may lose some of this container's output"),
        }
    }

    /// Waits for the next chunk of any output; none when all have ended.
    async fn next(&mut self) -> Option<Taken> {
        while !self.open.is_empty() {
            let mirror = self.mirror.as_ref();
            let (index, read) = match &self.open[..] {
                [one] => (0, one.read(mirror).await),
                [one, two, ..] => tokio::select! {
                    read = one.read(mirror) => (0, read),
                    read = two.read(mirror) => (1, read),
                },
                [] => return None,
            };
            match read {
                Ok(Some((bytes, kept))) => {
                    return Some(Taken { chunk: Chunk { source: self.open[index].source, bytes }, index, kept });
                }
                Ok(None) => drop(self.open.remove(index)),
                Err(error) => {
                    tracing::warn!(%error, "cannot read a process' output");
                    self.open.remove(index);
                }
            }
        }
        None
    }

    /// Takes out of the fifo what was read of it before.
    fn consume(&self, index: usize, mut bytes: usize) -> io::Result<()> {
        let mut buffer = vec![0; bytes];
        while bytes > 0 {
            match rustix::io::read(&self.open[index].pipe, &mut buffer[..bytes]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => bytes -= length,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Closes fifos that nobody writes to any more and in which nothing is left.
    ///
    /// When: the fifos were opened after the process began. The kernel reports the end of a fifo that had no writer
    /// when it was opened to a read, but to no poll.
    async fn take_present(&mut self, streams: &Streams, log: Option<&LogSink>) {
        let mut index = 0;
        while let Some(output) = self.open.get(index) {
            let read = match &self.mirror {
                Some(mirror) => mirror.look(&output.pipe),
                None => read_now(&output.pipe).map(|bytes| (bytes, 0)),
            };
            match read {
                Ok((bytes, _)) if bytes.is_empty() => drop(self.open.remove(index)),
                Ok((bytes, kept)) => {
                    let chunk = Chunk { source: output.source, bytes };
                    self.deliver(Taken { chunk, index, kept }, streams, log).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => index += 1,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a process' output");
                    self.open.remove(index);
                }
            }
        }
    }

    async fn deliver(&self, taken: Taken, streams: &Streams, log: Option<&LogSink>) {
        streams.send(&taken.chunk).await;
        if let Some(log) = log {
            if taken.kept > 0 {
                log.write_through(taken.chunk).await;
            } else {
                log.write(taken.chunk).await;
            }
        }
        if taken.kept > 0
            && let Err(error) = self.consume(taken.index, taken.kept)
        {
            tracing::warn!(%error, "some of a process' output may be logged twice");
        }
    }
}

fn read_now(pipe: &pipe::Receiver) -> io::Result<Bytes> {
    let mut buffer = vec![0; Chunk::MAX_BYTES];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut buffer[..]))?;
    buffer.truncate(length);
    Ok(Bytes::from(buffer))
}

/// Reads a pipe without emptying it. Source: tee(2).
struct Mirror {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Mirror {
    fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer })
    }

    /// The beginning of what is in the pipe, and its length; nothing at its end.
    fn look(&self, pipe: &pipe::Receiver) -> io::Result<(Bytes, usize)> {
        let tee = || rustix::pipe::tee(pipe, &self.writer, Chunk::MAX_BYTES, SpliceFlags::NONBLOCK);
        let length = rustix::io::retry_on_intr(tee)?;
        let mut buffer = vec![0; length];
        let mut done = 0;
        while done < length {
            done += rustix::io::retry_on_intr(|| rustix::io::read(&self.reader, &mut buffer[done..]))?;
        }
        Ok((Bytes::from(buffer), length))
    }
}

impl Output {
    /// The next bytes, and how many of them are still in the fifo.
    async fn read(&self, mirror: Option<&Mirror>) -> io::Result<Option<(Bytes, usize)>> {
        loop {
            self.pipe.readable().await?;
            if let Some(mirror) = mirror {
                match mirror.look(&self.pipe) {
                    Ok((_, 0)) => return Ok(None),
                    Ok(seen) => return Ok(Some(seen)),
                    // The read below tells the runtime that it is empty.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            let mut buffer = BytesMut::with_capacity(Chunk::MAX_BYTES);
            match self.pipe.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(None),
                // A short text must not hold a large buffer while it waits in queues.
                Ok(length) if length < Chunk::MAX_BYTES / 4 => return Ok(Some((Bytes::copy_from_slice(&buffer), 0))),
                Ok(_) => return Ok(Some((buffer.freeze(), 0))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Copies until every output has ended, or the engine stops. Shape: every byte goes to the log and to every client that
/// wants its source, in order; the slowest sets the pace. What goes to a log is taken out of its fifo only when it is in the
/// file, so that an engine that is killed loses none of it. When: `resumed` says that the process ran before the fifos were
/// opened.
pub async fn pump(
    mut outputs: Outputs,
    streams: &Streams,
    log: Option<LogSink>,
    stop: &CancellationToken,
    resumed: bool,
) {
    if log.is_some() {
        outputs.keep_until_logged();
    }
    if resumed {
        outputs.take_present(streams, log.as_ref()).await;
    }
    loop {
        let taken = tokio::select! {
            taken = outputs.next() => taken,
            // What is not read stays in the fifo for the next engine.
            () = stop.cancelled() => None,
        };
        let Some(taken) = taken else { break };
        outputs.deliver(taken, streams, log.as_ref()).await;
    }
    if let Some(log) = log {
        log.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Wanted;
    use crate::streams::fifo::{self, FifoSet};
    use std::io::Write;
    use std::sync::Arc;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_byte_arrives_in_order_and_the_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let paths = FifoSet::for_container(false, false).paths(dir.path(), "");
        fifo::make(&paths).unwrap();
        let ends = fifo::open(&paths).unwrap();
        let writer = std::thread::spawn(move || {
            let mut out = std::fs::OpenOptions::new().write(true).open(paths.stdout.unwrap()).unwrap();
            let _err = std::fs::OpenOptions::new().write(true).open(paths.stderr.unwrap()).unwrap();
            (0..20_000_u32).for_each(|n| writeln!(out, "{n}").unwrap());
        });
        let streams = Arc::new(Streams::default());
        let mut client = streams.attach(Wanted { stdout: true, stderr: true });
        let collect = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(chunk) = client.output.recv().await {
                all.extend_from_slice(&chunk.bytes);
            }
            all
        });
        pump(ends.outputs, &streams, None, &CancellationToken::new(), false).await;
        streams.end_run().await;
        let expected: String = (0..20_000_u32).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(collect.await.unwrap()).unwrap(), expected);
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn a_fifo_whose_writer_left_before_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let paths = FifoSet { stdin: false, stdout: true, stderr: false, terminal: true }.paths(dir.path(), "");
        fifo::make(&paths).unwrap();
        // The shim keeps a reading end open, so that what the process wrote is not lost.
        let shim = fifo::open(&paths).unwrap();
        let stdout = paths.stdout.clone().unwrap();
        std::fs::OpenOptions::new().write(true).open(stdout).unwrap().write_all(b"last words").unwrap();
        let ends = fifo::open(&paths).unwrap();
        let streams = Arc::new(Streams::default());
        let mut client = streams.attach(Wanted { stdout: true, stderr: true });
        let never = CancellationToken::new();
        let done = pump(ends.outputs, &streams, None, &never, true);
        tokio::time::timeout(std::time::Duration::from_secs(5), done).await.unwrap();
        assert_eq!(client.output.recv().await.unwrap().bytes, "last words");
        drop(shim);
    }

    #[tokio::test]
    async fn what_a_killed_engine_has_not_logged_is_still_in_the_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let paths = FifoSet { stdin: false, stdout: true, stderr: false, terminal: true }.paths(dir.path(), "");
        fifo::make(&paths).unwrap();
        let mut ends = fifo::open(&paths).unwrap().outputs;
        let mut out = std::fs::OpenOptions::new().write(true).open(paths.stdout.as_ref().unwrap()).unwrap();
        ends.keep_until_logged();
        out.write_all(b"one\n").unwrap();
        let seen = ends.next().await.unwrap();
        assert_eq!((&seen.chunk.bytes[..], seen.kept), (&b"one\n"[..], 4));
        // The engine dies here, and another one comes.
        let again = ends.next().await.unwrap();
        assert_eq!(again.chunk.bytes, "one\n");
        out.write_all(b"two\n").unwrap();
        ends.consume(again.index, again.kept).unwrap();
        assert_eq!(ends.next().await.unwrap().chunk.bytes, "two\n");
    }
}
