//! Copies a process' output from its fifos to the log and the attached clients.

use std::io;

use axum::body::Bytes;
use bytes::BytesMut;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::Streams;
use crate::log::LogSink;
use crate::output::{Chunk, Source};

/// The reading ends of a process' output.
pub struct Outputs(Vec<Output>);

struct Output {
    source: Source,
    pipe: pipe::Receiver,
}

impl Outputs {
    /// From the ends that there are.
    #[must_use]
    pub fn new(ends: [(Source, Option<pipe::Receiver>); 2]) -> Self {
        Self(ends.into_iter().filter_map(|(source, pipe)| Some(Output { source, pipe: pipe? })).collect())
    }

    /// Waits for the next chunk of any output; none when all have ended.
    async fn next(&mut self) -> Option<Chunk> {
        while !self.0.is_empty() {
            let (index, read) = match &self.0[..] {
                [one] => (0, one.read().await),
                [one, two, ..] => tokio::select! {
                    read = one.read() => (0, read),
                    read = two.read() => (1, read),
                },
                [] => return None,
            };
            match read {
                Ok(Some(bytes)) => return Some(Chunk { source: self.0[index].source, bytes }),
                Ok(None) => drop(self.0.remove(index)),
                Err(error) => {
                    tracing::warn!(%error, "cannot read a process' output");
                    self.0.remove(index);
                }
            }
        }
        None
    }

    /// Takes what is in the fifos without waiting, and closes those that nobody writes to any more.
    ///
    /// When: the fifos were opened after the process began. The kernel reports the end of a fifo that had no writer
    /// when it was opened to a read, but to no poll.
    fn take_present(&mut self) -> io::Result<Vec<Chunk>> {
        let mut chunks = Vec::new();
        let mut failed = None;
        self.0.retain(|output| {
            loop {
                let mut buffer = vec![0; Chunk::MAX_BYTES];
                match rustix::io::read(&output.pipe, &mut buffer) {
                    Ok(0) => return false,
                    Ok(length) => {
                        buffer.truncate(length);
                        chunks.push(Chunk { source: output.source, bytes: Bytes::from(buffer) });
                    }
                    Err(rustix::io::Errno::AGAIN) => return true,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        failed = Some(error);
                        return false;
                    }
                }
            }
        });
        failed.map_or(Ok(chunks), |error| Err(error.into()))
    }
}

impl Output {
    async fn read(&self) -> io::Result<Option<Bytes>> {
        loop {
            self.pipe.readable().await?;
            let mut buffer = BytesMut::with_capacity(Chunk::MAX_BYTES);
            match self.pipe.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(None),
                // A short text must not hold a large buffer while it waits in queues.
                Ok(length) if length < Chunk::MAX_BYTES / 4 => return Ok(Some(Bytes::copy_from_slice(&buffer))),
                Ok(_) => return Ok(Some(buffer.freeze())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Copies until every output has ended, or the engine stops. Shape: every byte goes to the log and to every client that
/// wants its source, in order; the slowest sets the pace. When: `resumed` says that the process ran before the fifos
/// were opened.
pub async fn pump(
    mut outputs: Outputs,
    streams: &Streams,
    log: Option<LogSink>,
    stop: &CancellationToken,
    resumed: bool,
) {
    if resumed {
        match outputs.take_present() {
            Ok(chunks) => {
                for chunk in chunks {
                    deliver(chunk, streams, log.as_ref()).await;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read a process' output"),
        }
    }
    loop {
        let chunk = tokio::select! {
            chunk = outputs.next() => chunk,
            // What is not read stays in the fifo for the next engine.
            () = stop.cancelled() => None,
        };
        let Some(chunk) = chunk else { break };
        deliver(chunk, streams, log.as_ref()).await;
    }
    if let Some(log) = log {
        log.finish().await;
    }
}

async fn deliver(chunk: Chunk, streams: &Streams, log: Option<&LogSink>) {
    streams.send(&chunk).await;
    if let Some(log) = log {
        log.write(chunk).await;
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
}
