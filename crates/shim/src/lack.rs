//! A container's kills for want of memory: each growth of their number is told once, when it happens, and none after the container's end.
//!
//! A container can have its processes killed as fast as it likes, and a hostile guest can say so without end. So what is counted
//! within [`PACE`] of what was told last is told together, after it or with the end.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use container::OomWatch;
use proto::{ErrorKind, Status};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::sys;

/// How long after the start of its first process a container is watched: most that end soon never need to be, and with the end it is told
/// in any case.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// The least time between what is told and what is told next.
pub const PACE: Duration = Duration::from_secs(1);

/// What was told.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    kills: u64,
    is_watched: bool,
    has_ended: bool,
}

/// What of a container's kills is told.
#[derive(Default)]
pub struct Lack(watch::Sender<Told>);

impl Lack {
    /// Tells, if the number has grown and the container has not ended. False when it has.
    pub fn count(&self, kills: u64, tell: impl FnOnce()) -> bool {
        let mut has_ended = false;
        self.0.send_if_modified(|told| {
            has_ended = told.has_ended;
            if has_ended || kills <= told.kills {
                return false;
            }
            told.kills = kills;
            // Here, so that nobody tells the end in between.
            tell();
            true
        });
        !has_ended
    }

    /// Nothing more is told.
    pub fn end(&self) {
        self.0.send_modify(|told| told.has_ended = true);
    }

    /// True for the one who is to watch.
    pub fn begin(&self) -> bool {
        let mut begins = false;
        self.0.send_if_modified(|told| {
            begins = !std::mem::replace(&mut told.is_watched, true);
            false
        });
        begins
    }

    /// Waits until more than `seen` are told, and answers how many; with the end, how many were told in all.
    pub async fn told_after(&self, seen: u64) -> u64 {
        let mut told = self.0.subscribe();
        let told = told.wait_for(|told| told.has_ended || told.kills > seen).await;
        // The sender lives in self.
        told.map_or(0, |told| told.kills)
    }
}

/// Counts until there is nothing more to tell. Shape: `next` waits for a number above the given one; `count` is false after the end; `pace` as
/// [`PACE`].
pub async fn watch<F: Future<Output = Option<u64>>>(
    pace: Duration,
    next: impl Fn(u64) -> F,
    count: impl Fn(u64) -> bool,
) {
    let mut seen = 0;
    while let Some(kills) = next(seen).await.filter(|&kills| kills > seen) {
        if !count(kills) {
            return;
        }
        seen = kills;
        tokio::time::sleep(pace).await;
    }
}

/// A container's events of memory on this host, watched.
pub struct Events {
    events: AsyncFd<OwnedFd>,
    watch: OomWatch,
}

impl Events {
    /// Watches what [`container::Container::oom_events`] gives. When: within the runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch((events, watch): (OwnedFd, OomWatch)) -> io::Result<Self> {
        Ok(Self { events: sys::watch(events, Interest::READABLE)?, watch })
    }

    /// Waits for a number of kills above `seen`.
    ///
    /// # Errors
    /// Those of `kills`: the container is gone.
    pub async fn kills_after<F: Future<Output = Result<u64, Status>>>(
        &self,
        seen: u64,
        kills: impl Fn() -> F,
    ) -> Result<u64, Status> {
        let event = || async {
            let readable = self.events.readable().await;
            let mut ready = readable.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
            OomWatch::discard(self.events.get_ref());
            ready.clear_ready();
            Ok(())
        };
        self.watch.kills_after(seen, kills, event, tokio::time::sleep).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;
    use std::time::Instant;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn each_growth_is_told_once_and_none_after_the_end() {
        let lack = Lack::default();
        let told = Cell::new(0);
        let count = |kills| lack.count(kills, || told.set(told.get() + 1));
        for (kills, times) in [(0, 0), (1, 1), (1, 1), (3, 2), (2, 2)] {
            assert!(count(kills));
            assert_eq!(told.get(), times, "{kills}");
        }
        lack.end();
        assert!(!count(9));
        assert_eq!(told.get(), 2);
        assert!(lack.begin());
        assert!(!lack.begin(), "one watches");
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_growth_and_of_the_end() {
        let lack = Arc::new(Lack::default());
        lack.count(2, || {});
        assert_eq!(lack.told_after(0).await, 2);
        let wait = |seen| {
            let lack = Arc::clone(&lack);
            tokio::spawn(async move { lack.told_after(seen).await })
        };
        let (growth, end) = (wait(2), wait(7));
        tokio::task::yield_now().await;
        lack.count(5, || {});
        assert_eq!(growth.await.unwrap(), 5);
        tokio::task::yield_now().await;
        assert!(!end.is_finished());
        lack.end();
        assert_eq!(end.await.unwrap(), 5, "no greater number than was asked for");
    }

    #[tokio::test]
    async fn who_cries_without_end_is_heard_at_that_pace() {
        let pace = Duration::from_millis(20);
        let (cries, told) = (Cell::new(0_u64), RefCell::new(Vec::new()));
        let next = |_| {
            cries.set(cries.get() + 1);
            std::future::ready(Some(cries.get()))
        };
        let began = Instant::now();
        let count = |kills| {
            told.borrow_mut().push((kills, began.elapsed()));
            kills < 4
        };
        watch(pace, next, count).await;
        for (expected, (kills, at)) in (1..).zip(told.borrow().iter()) {
            assert!(*kills == expected && *at >= pace * u32::try_from(expected - 1).unwrap(), "{told:?}");
        }
        assert_eq!(told.borrow().len(), 4);
        // A number that does not grow is the last word, whatever it comes from.
        watch(pace, |seen| std::future::ready(Some(seen.max(1))), |_| true).await;
        watch(pace, |_| std::future::ready(None), |_| panic!("nothing is told")).await;
    }

    #[tokio::test]
    async fn an_event_is_taken_once_and_a_container_that_is_gone_ends_the_wait() {
        let events = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        let events = Events::watch((events, OomWatch::default())).unwrap();
        let looks = Cell::new(0);
        let kills = || {
            looks.set(looks.get() + 1);
            std::future::ready(Ok(looks.get()))
        };
        assert_eq!((events.kills_after(1, kills).await.unwrap(), looks.get()), (2, 2));
        let again = tokio::time::timeout(Duration::from_millis(50), events.kills_after(9, kills));
        assert!(again.await.is_err() && looks.get() == 3, "no more events: {}", looks.get());
        let gone = async || Err(Status::new(ErrorKind::NotFound, "gone"));
        assert_eq!(events.kills_after(0, gone).await.unwrap_err().kind, ErrorKind::NotFound);
    }
}
