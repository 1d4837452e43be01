//! To be told when the kernel runs out of a cgroup's memory, at that moment.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control"; cgroup-v2.rst, "memory.events".

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;

use super::Cgroup;

impl Cgroup {
    /// A descriptor that becomes readable, and stays so until it is read, when a process may be or have been killed for want of memory:
    /// [`Cgroup::oom_kills`] says whether one was, with version 1 a moment later. Also when the cgroup is removed. Shape: eight
    /// bytes or more at a time, to be thrown away; does not block.
    ///
    /// # Errors
    /// No cgroup of that kind, or the kernel does not tell.
    pub fn oom_events(&self) -> io::Result<OwnedFd> {
        if let Some(folder) = self.unified() {
            let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&events, folder.join("memory.events"), inotify::WatchFlags::MODIFY)?;
            return Ok(events);
        }
        let folder = self.v1("memory").ok_or(io::ErrorKind::NotFound)?;
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = File::open(folder.join("memory.oom_control"))?;
        let order = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        fs::write(folder.join("cgroup.event_control"), order)?;
        Ok(events)
    }
}
