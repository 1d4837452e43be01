//! To be told when the kernel kills one of a container's processes for want of memory, at that moment.

use std::io;
use std::os::fd::OwnedFd;

use container::OomWatch;
use proto::{ErrorKind, Status};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A container's events of memory, watched.
pub struct Lack {
    events: AsyncFd<OwnedFd>,
    watch: OomWatch,
}

impl Lack {
    /// Watches what [`container::Container::oom_events`] gives. When: within the runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch((events, watch): (OwnedFd, OomWatch)) -> io::Result<Self> {
        Ok(Self { events: sys::watch(events)?, watch })
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
    use std::cell::Cell;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[tokio::test]
    async fn an_event_is_taken_once_and_a_container_that_is_gone_ends_the_wait() {
        let events = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        let lack = Lack::watch((events, OomWatch::default())).unwrap();
        let looks = Cell::new(0);
        let kills = || {
            looks.set(looks.get() + 1);
            std::future::ready(Ok(looks.get()))
        };
        assert_eq!((lack.kills_after(1, kills).await.unwrap(), looks.get()), (2, 2));
        let again = tokio::time::timeout(std::time::Duration::from_millis(50), lack.kills_after(9, kills));
        assert!(again.await.is_err() && looks.get() == 3, "no more events: {}", looks.get());
        let gone = async || Err(Status::new(ErrorKind::NotFound, "gone"));
        assert_eq!(lack.kills_after(0, gone).await.unwrap_err().kind, ErrorKind::NotFound);
    }
}
