//! A device's thread: waits for kicks and for what is behind the device, and gives the device its turns.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::device::VirtioDevice;
use super::transport::Transport;
use crate::jail::filter::{self, Role};
use crate::sys;

/// Called when its descriptor is ready, or when what it answered last time has come.
type Handler = Box<dyn FnMut() -> Option<Instant> + Send>;

/// What a thread waits for.
pub(crate) struct EventLoop {
    epoll: OwnedFd,
    /// Each with when it wants to be called whatever its descriptor says.
    handlers: Vec<(Handler, Option<Instant>)>,
    /// What is watched and nobody else has.
    kept: Vec<File>,
}

impl EventLoop {
    /// A loop that waits for nothing.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, handlers: Vec::new(), kept: Vec::new() })
    }

    /// Serves a device's queues when they are kicked.
    pub(crate) fn serve<D: VirtioDevice>(&mut self, transport: &Arc<Transport<D>>) -> io::Result<()> {
        for number in 0..transport.kicks().len() {
            let served = Arc::clone(transport);
            let handler = move || {
                // It cannot fail in a way that matters: what was counted is looked for anyway.
                let _ = served.kicks()[number].read();
                served.serve(number)
            };
            self.watch(sys::borrow(&transport.kicks()[number]), EventFlags::IN, handler)?;
        }
        Ok(())
    }

    /// Calls `handler` when the descriptor is ready. When: the descriptor must stay open as long as it is to be watched.
    pub(crate) fn watch(
        &mut self,
        descriptor: BorrowedFd<'_>,
        flags: EventFlags,
        handler: impl FnMut() -> Option<Instant> + Send + 'static,
    ) -> io::Result<()> {
        epoll::add(&self.epoll, descriptor, EventData::new_u64(self.handlers.len() as u64), flags)?;
        self.handlers.push((Box::new(handler), None));
        Ok(())
    }

    /// Keeps a file open as long as the loop runs.
    pub(crate) fn keep(&mut self, file: File) {
        self.kept.push(file);
    }

    /// Runs it in a thread of its own, until the process ends.
    pub(crate) fn spawn(mut self, name: &str, role: Role) -> io::Result<()> {
        let run = move || {
            filter::install(role).expect("a thread's system calls can be filtered");
            self.run();
        };
        thread::Builder::new().name(name.to_owned()).spawn(run).map(|_| ())
    }

    fn run(&mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(8);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // The descriptor is ours and open: nothing that goes on could be right.
                Err(error) => panic!("cannot wait for events: {error}"),
            }
            for event in &events {
                let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                if let Some((handler, due)) = self.handlers.get_mut(number) {
                    *due = handler();
                }
            }
            if timeout.is_some() {
                self.call_due();
            }
        }
    }

    /// How long until the first handler wants to be called.
    fn timeout(&self) -> Option<Timespec> {
        let due = self.handlers.iter().filter_map(|(_, due)| *due).min()?;
        Timespec::try_from(due.saturating_duration_since(Instant::now())).ok()
    }

    fn call_due(&mut self) {
        let now = Instant::now();
        for (handler, due) in &mut self.handlers {
            if due.is_some_and(|due| due <= now) {
                *due = handler();
            }
        }
    }
}
