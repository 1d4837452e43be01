//! A container's kills for want of memory: each is told once, when it happens, and none after the container's end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::Interest;
use tokio::sync::Mutex;

use crate::sys;

/// With cgroup version 1 the kernel tells of a lack before it kills. Shape: how often the count is looked at again, and when.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// What came of a look at the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It had grown, and that is told.
    Told,
    /// It had not.
    Nothing,
    /// There is nothing more to tell.
    Ended,
}

/// How many are told; `None` once the container has ended.
pub struct Lack(Mutex<Option<u64>>);

impl Default for Lack {
    fn default() -> Self {
        Self(Mutex::new(Some(0)))
    }
}

impl Lack {
    /// Tells, if the count has grown.
    pub async fn look(&self, kills: u64, tell: impl FnOnce()) -> Look {
        let mut told = self.0.lock().await;
        match *told {
            None => Look::Ended,
            Some(before) if kills > before => {
                *told = Some(kills);
                tell();
                Look::Told
            }
            Some(_) => Look::Nothing,
        }
    }

    /// Nothing more is told.
    pub async fn end(&self) {
        *self.0.lock().await = None;
    }
}

/// Looks at the count whenever the kernel says that it may have grown, until the container has ended. Shape: `events` as of
/// [`crate::compute::ComputeSystem::oom_events`].
pub async fn watch(events: OwnedFd, look: impl Fn() -> BoxFuture<'static, Look>) {
    let events = match sys::watch(events, Interest::READABLE) {
        Ok(events) => events,
        Err(error) => return tracing::warn!(%error, "a lack of memory is told with the end only"),
    };
    loop {
        let Ok(mut ready) = events.readable().await else { return };
        // What is read says nothing more; it only makes the descriptor wait for the next.
        let _ = rustix::io::read(events.get_ref(), &mut [0_u8; 4096]);
        ready.clear_ready();
        for _ in 0..LOOKS {
            match look().await {
                Look::Told => break,
                Look::Nothing => tokio::time::sleep(PAUSE).await,
                Look::Ended => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[tokio::test]
    async fn each_growth_is_told_once_and_none_after_the_end() {
        let lack = Lack::default();
        let seen = AtomicU64::new(0);
        let tell = || {
            seen.fetch_add(1, Ordering::Relaxed);
        };
        let mut looks = Vec::new();
        for kills in [0, 1, 1, 3] {
            looks.push(lack.look(kills, tell).await);
        }
        lack.end().await;
        looks.push(lack.look(9, tell).await);
        assert_eq!(looks, [Look::Nothing, Look::Told, Look::Nothing, Look::Told, Look::Ended]);
        assert_eq!(seen.into_inner(), 2);
    }

    #[tokio::test]
    async fn a_count_that_grows_after_the_event_is_seen_and_the_watch_ends() {
        let (events, looks) = (eventfd(1, EventfdFlags::NONBLOCK).unwrap(), Arc::new(AtomicU64::new(0)));
        let (writer, counted) = (events.try_clone().unwrap(), Arc::clone(&looks));
        let watched = watch(events, move || {
            let look = counted.fetch_add(1, Ordering::Relaxed);
            if look == 2 {
                // Told; the next event finds the end.
                rustix::io::write(&writer, &1_u64.to_ne_bytes()).unwrap();
            }
            Box::pin(
                async move { [Look::Nothing, Look::Nothing, Look::Told, Look::Ended][usize::try_from(look).unwrap()] },
            )
        });
        tokio::time::timeout(Duration::from_secs(5), watched).await.unwrap();
        assert_eq!(looks.load(Ordering::Relaxed), 4);
    }
}
