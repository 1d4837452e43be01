//! Copies a process' output from its fifos to the log and the attached clients.

use std::io;
use std::os::fd::OwnedFd;

use axum::body::Bytes;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::Streams;
use crate::log::LogSink;
use crate::output::{Chunk, Source};

/// The reading ends of a process' output.
pub struct Outputs {
    open: Vec<Output>,
}

struct Output {
    source: Source,
    fifo: AsyncFd<OwnedFd>,
}

/// Output that was read.
struct Taken {
    chunk: Chunk,
    /// Where the log's spool ends behind it, if the log has taken it.
    end: Option<u64>,
}

impl Outputs {
    /// From the ends that there are.
    #[must_use]
    pub fn new(ends: [(Source, Option<AsyncFd<OwnedFd>>); 2]) -> Self {
        Self { open: ends.into_iter().filter_map(|(source, fifo)| Some(Output { source, fifo: fifo? })).collect() }
    }

    /// Waits for the next chunk of any output; none when all have ended.
    async fn next(&mut self, log: Option<&LogSink>) -> Option<Taken> {
        while !self.open.is_empty() {
            let (index, read) = match &self.open[..] {
                [one] => (0, one.read(log).await),
                [one, two, ..] => tokio::select! {
                    read = one.read(log) => (0, read),
                    read = two.read(log) => (1, read),
                },
                [] => return None,
            };
            match read {
                Ok(Some(taken)) => return Some(taken),
                Ok(None) => drop(self.open.remove(index)),
                Err(error) => {
                    tracing::warn!(%error, "cannot read a process' output");
                    self.open.remove(index);
                }
            }
        }
        None
    }

    /// Closes fifos that nobody writes to any more and in which nothing is left.
    ///
    /// When: the fifos were opened after the process began. The kernel reports the end of a fifo that had no writer
    /// when it was opened to a read, but to no poll.
    async fn take_present(&mut self, streams: &Streams, log: Option<&LogSink>) {
        let mut index = 0;
        while let Some(output) = self.open.get(index) {
            match output.take(log) {
                Ok(None) => drop(self.open.remove(index)),
                Ok(Some(taken)) => taken.deliver(streams, log).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => index += 1,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a process' output");
                    self.open.remove(index);
                }
            }
        }
    }
}

impl Taken {
    async fn deliver(self, streams: &Streams, log: Option<&LogSink>) {
        streams.send(&self.chunk).await;
        match (log, self.end) {
            (Some(log), Some(end)) => log.write_through(self.chunk, end).await,
            (Some(log), None) => log.write(self.chunk).await,
            (None, _) => {}
        }
    }
}

impl Output {
    /// Takes what there is; none at the end.
    fn take(&self, log: Option<&LogSink>) -> io::Result<Option<Taken>> {
        let chunk = |bytes| Chunk { source: self.source, bytes };
        if let Some(log) = log {
            match log.take(self.source, &self.fifo) {
                Ok(taken) => return Ok(taken.map(|taken| Taken { chunk: chunk(taken.bytes), end: Some(taken.end) })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => log.tell_without_journal(&error),
            }
        }
        let bytes = read_now(&self.fifo)?;
        Ok((!bytes.is_empty()).then(|| Taken { chunk: chunk(bytes), end: None }))
    }

    /// Waits for the next chunk; none at the end.
    async fn read(&self, log: Option<&LogSink>) -> io::Result<Option<Taken>> {
        loop {
            let mut ready = self.fifo.readable().await?;
            match self.take(log) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                taken => return taken,
            }
        }
    }
}

fn read_now(fifo: &AsyncFd<OwnedFd>) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(Chunk::MAX_BYTES);
    rustix::io::retry_on_intr(|| rustix::io::read(fifo, rustix::buffer::spare_capacity(&mut buffer)))?;
    // A short text must not hold a large buffer while it waits in queues.
    Ok(if buffer.len() < Chunk::MAX_BYTES / 4 { Bytes::copy_from_slice(&buffer) } else { Bytes::from(buffer) })
}

/// Copies until every output has ended, or the engine stops. Shape: every byte goes to the log and to every client that
/// wants its source, in order; the slowest sets the pace. What goes to a log goes through its journal, so that an engine that
/// is killed neither loses it nor logs it twice. When: `resumed` says that the process ran before the fifos were opened.
pub async fn pump(
    mut outputs: Outputs,
    streams: &Streams,
    log: Option<LogSink>,
    stop: &CancellationToken,
    resumed: bool,
) {
    if resumed {
        outputs.take_present(streams, log.as_ref()).await;
    }
    loop {
        let taken = tokio::select! {
            taken = outputs.next(log.as_ref()) => taken,
            // What is not read stays in the fifo for the next engine.
            () = stop.cancelled() => None,
        };
        let Some(taken) = taken else { break };
        taken.deliver(streams, log.as_ref()).await;
    }
    if let Some(log) = log {
        log.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Log, LogOptions, LogReader, LogWriter, Selection};
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

    /// Every way in which an engine can be killed with a piece in its hands.
    #[tokio::test]
    async fn a_killed_engine_logs_everything_once() {
        for (deeds, rotates) in
            [("taken", false), ("logged", false), ("half logged", false), ("logged", true), ("finished", false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let paths = FifoSet { stdin: false, stdout: true, stderr: false, terminal: true }.paths(dir.path(), "");
            fifo::make(&paths).unwrap();
            // The shim's end.
            let _shim = fifo::open(&paths).unwrap();
            let mut out = std::fs::OpenOptions::new().write(true).open(paths.stdout.as_ref().unwrap()).unwrap();
            let max_bytes = if rotates { Some(150) } else { None };
            let options = LogOptions { max_bytes, max_files: 9, ..LogOptions::default() };
            let log = Arc::new(Log::new(dir.path().join("log"), options));
            let streams = Streams::default();
            let mut outputs = fifo::open(&paths).unwrap().outputs;
            let sink = LogWriter::start(Arc::clone(&log), dir.path()).unwrap();
            out.write_all(b"one\ntw").unwrap();
            outputs.next(Some(&sink)).await.unwrap().deliver(&streams, Some(&sink)).await;
            let marked = std::fs::read(dir.path().join("log-mark")).unwrap();
            let length = std::fs::metadata(dir.path().join("log")).unwrap().len();
            out.write_all(b"o\nthree\nfour\nfi").unwrap();
            let taken = outputs.next(Some(&sink)).await.unwrap();
            if deeds != "taken" {
                taken.deliver(&streams, Some(&sink)).await;
                // As if it had been killed before it noted what it had done.
                std::fs::write(dir.path().join("log-mark"), &marked).unwrap();
            }
            match deeds {
                "half logged" => {
                    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("log")).unwrap();
                    file.set_len(length + 20).unwrap();
                }
                "finished" => {
                    let spool = std::fs::read(dir.path().join("log-stdout")).unwrap();
                    sink.finish().await;
                    std::fs::write(dir.path().join("log-mark"), &marked).unwrap();
                    std::fs::write(dir.path().join("log-stdout"), spool).unwrap();
                }
                // Its writer ends with the test, as a killed one does: without a word.
                _ => std::mem::forget(sink),
            }
            let sink = LogWriter::start(Arc::clone(&log), dir.path()).unwrap();
            out.write_all(b"ve\nsix").unwrap();
            drop(out);
            let ends = fifo::open(&paths).unwrap();
            let never = CancellationToken::new();
            let done = pump(ends.outputs, &streams, Some(sink), &never, true);
            tokio::time::timeout(std::time::Duration::from_secs(5), done).await.unwrap();
            let wanted = Wanted { stdout: true, stderr: true };
            let mut reader = LogReader::open(Arc::clone(&log), Selection { wanted, ..Selection::default() }).unwrap();
            let mut text = String::new();
            loop {
                let batch = reader.next_batch().unwrap();
                if batch.is_empty() {
                    break;
                }
                batch.iter().for_each(|entry| text += &entry.text);
            }
            assert_eq!(text, "one\ntwo\nthree\nfour\nfive\nsix", "{deeds}, {rotates}");
            let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
            assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("log-")), "{left:?}");
        }
    }
}
