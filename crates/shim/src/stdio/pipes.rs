//! A process without a terminal: pipes of its own, which are copied to and from the caller's fifos.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};

use super::thread::StreamThread;
use super::{Fifos, Output, Streams, copy_input, copy_output, reader, writer};

/// Descriptors for a process to inherit; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct InheritedStreams {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// What is copied, each from the first to the second.
#[derive(Default)]
struct PipeEnds {
    stdin: Option<(OwnedFd, OwnedFd)>,
    outputs: Vec<(OwnedFd, OwnedFd)>,
}

impl Fifos {
    /// Makes what a process without a terminal inherits: pipes, which are copied to and from the fifos, or files themselves. The
    /// descriptors block. When: within the runtime; [`Streams::process_started`] comes after the start.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub fn pipe(self) -> io::Result<(InheritedStreams, Streams)> {
        let mut streams = Streams::new(self.logger);
        let mut theirs = Vec::new();
        let mut theirs_too = |end: OwnedFd| -> io::Result<OwnedFd> {
            theirs.push(end.try_clone()?);
            Ok(end)
        };
        let (mut inherited, mut ours) = (InheritedStreams::default(), PipeEnds::default());
        if let Some(input) = self.stdin {
            let is_fifo = input.hold.is_some();
            let read = streams.hold_input(input)?;
            inherited.stdin = Some(if is_fifo {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                ours.stdin = Some((read, writer));
                theirs_too(reader)?
            } else {
                read
            });
        }
        let mut holds = Vec::new();
        for (output, inherited) in [(self.stdout, &mut inherited.stdout), (self.stderr, &mut inherited.stderr)] {
            *inherited = match output {
                Some(Output { write, hold: Some(hold) }) => {
                    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                    ours.outputs.push((reader, write));
                    holds.push(hold);
                    Some(theirs_too(writer)?)
                }
                Some(Output { write, hold: None }) => Some(write),
                None => None,
            };
        }
        streams.output_holds = Arc::new(holds);
        streams.is_foreign = self.is_foreign;
        if !theirs.is_empty() {
            let thread = streams.thread.insert(StreamThread::spawn(theirs)?);
            let (_there, copies) = (thread.enter(), thread.handle().clone());
            if let Some((from, to)) = ours.stdin {
                let copy = copy_input(reader(from)?, writer(to)?);
                streams.others.lock().unwrap_or_else(|e| e.into_inner()).spawn_on(copy, &copies);
            }
            for (from, to) in ours.outputs {
                let copy = copy_output(reader(from)?, writer(to)?, streams.exited.clone());
                streams.outputs.lock().unwrap_or_else(|e| e.into_inner()).spawn_on(copy, &copies);
            }
        }
        Ok((inherited, streams))
    }
}
