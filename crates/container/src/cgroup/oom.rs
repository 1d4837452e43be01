//! To be told when the kernel runs out of a cgroup's memory, at that moment.
//!
//! Source: Linux Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control"; cgroup-v2.rst, "memory.events".

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;

use super::Cgroup;

/// With cgroup version 1 the kernel tells of a lack before it kills. Shape: how often the number is looked at after an event, and when.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// More than any event has.
const MOST_BYTES: usize = 4096;

impl Cgroup {
    /// A descriptor that becomes readable, and stays so until it is read, when a process may be or have been killed for want of memory:
    /// [`Cgroup::oom_kills`] says whether one was, with version 1 a moment later. Also when the cgroup is removed. Shape: it does not
    /// block; [`OomWatch::discard`] reads it.
    ///
    /// # Errors
    /// No cgroup of that kind, or the kernel does not tell.
    pub fn oom_events(&self) -> io::Result<(OwnedFd, OomWatch)> {
        if let Some(folder) = self.unified() {
            let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&events, folder.join("memory.events"), inotify::WatchFlags::MODIFY)?;
            return Ok((events, OomWatch::default()));
        }
        let folder = self.v1("memory").ok_or(io::ErrorKind::NotFound)?;
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = File::open(folder.join("memory.oom_control"))?;
        let order = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        fs::write(folder.join("cgroup.event_control"), order)?;
        Ok((events, OomWatch { looks: LOOKS }))
    }
}

/// How a container's kills for want of memory are waited for. This crate has no runtime, so whoever waits brings one.
#[derive(Debug, Clone, Copy)]
pub struct OomWatch {
    looks: u32,
}

impl Default for OomWatch {
    /// For events that come with the kill, as version 2's.
    fn default() -> Self {
        Self { looks: 1 }
    }
}

impl OomWatch {
    /// Waits for a number of kills above `seen`. Shape: `kills` as of [`crate::Container::oom_kills`]; `event` waits until what
    /// [`crate::Container::oom_events`] has given is readable, and reads it by [`OomWatch::discard`]; `pause` waits that long.
    ///
    /// # Errors
    /// Those of `kills` and `event`.
    pub async fn kills_after<E, K, V, P>(
        &self,
        seen: u64,
        kills: impl Fn() -> K,
        event: impl Fn() -> V,
        pause: impl Fn(Duration) -> P,
    ) -> Result<u64, E>
    where
        K: Future<Output = Result<u64, E>>,
        V: Future<Output = Result<(), E>>,
        P: Future<Output = ()>,
    {
        // Before there is an event, too: it was killed before anybody watched.
        let mut looks = 1;
        loop {
            for look in 0..looks {
                if look > 0 {
                    pause(PAUSE).await;
                }
                let kills = kills().await?;
                if kills > seen {
                    return Ok(kills);
                }
            }
            looks = self.looks;
            event().await?;
        }
    }

    /// Reads what has come. It says nothing more; it only makes the descriptor wait for the next.
    pub fn discard(events: impl AsFd) {
        // Nothing to be read is as good.
        let _ = rustix::io::read(events, &mut [0_u8; MOST_BYTES]);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::ready;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Nothing in it waits.
    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    /// What is waited for until the numbers, one a look, exceed `seen`: `l` for a look, `p` for a pause, `e` for an event.
    fn waits(looks: u32, seen: u64, numbers: &[Result<u64, &'static str>]) -> (Result<u64, &'static str>, String) {
        let (said, next) = (RefCell::new(String::new()), Cell::new(0));
        let kills = || {
            said.borrow_mut().push('l');
            ready(numbers[next.replace(next.get() + 1)])
        };
        let event = || {
            said.borrow_mut().push('e');
            ready(Ok(()))
        };
        let pause = |_| {
            said.borrow_mut().push('p');
            ready(())
        };
        let kills = now(OomWatch { looks }.kills_after(seen, kills, event, pause));
        (kills, said.into_inner())
    }

    #[test]
    fn what_was_killed_before_anybody_watched_needs_no_event() {
        assert_eq!(waits(3, 1, &[Ok(2)]), (Ok(2), "l".into()));
    }

    #[test]
    fn an_event_that_comes_before_the_kill_is_followed_by_several_looks() {
        assert_eq!(waits(3, 0, &[Ok(0), Ok(0), Ok(0), Ok(1)]), (Ok(1), "lelplpl".into()));
        assert_eq!(
            waits(3, 0, &[Ok(0), Ok(0), Ok(0), Ok(0), Ok(1)]),
            (Ok(1), "lelplplel".into()),
            "one without a kill"
        );
    }

    #[test]
    fn an_event_that_comes_with_the_kill_is_followed_by_one_look() {
        assert_eq!(waits(1, 4, &[Ok(4), Ok(4), Ok(5)]), (Ok(5), "lelel".into()));
    }

    #[test]
    fn a_container_that_is_gone_ends_the_wait() {
        assert_eq!(waits(1, 0, &[Ok(0), Err("gone")]), (Err("gone"), "lel".into()));
    }

    #[test]
    fn what_is_discarded_is_no_event_any_more() {
        let events = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        OomWatch::discard(&events);
        assert_eq!(rustix::io::read(&events, &mut [0_u8; 8]), Err(rustix::io::Errno::AGAIN));
        OomWatch::discard(&events);
    }
}
