//! To be told when the kernel kills one of a container's processes for want of memory, at that moment.

use std::io;
use std::os::fd::OwnedFd;

use proto::Status;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A container's events of memory, watched.
pub struct Lack(AsyncFd<OwnedFd>);

impl Lack {
    /// Watches what [`container::Container::oom_events`] gives. When: within the runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch(events: OwnedFd) -> io::Result<Self> {
        Ok(Self(sys::watch(events)?))
    }

    /// Waits for a number of kills above `seen`.
    ///
    /// # Errors
    /// Those of `kills`: the container is gone.
    pub async fn grown<F: Future<Output = Result<u64, Status>>>(
        &self,
        seen: u64,
        kills: impl Fn() -> F,
    ) -> Result<u64, Status> {
        loop {
            // Before there is an event, too: it was killed before anybody watched.
            let kills = kills().await?;
            if kills > seen {
                return Ok(kills);
            }
            let readable = self.0.readable().await;
            let mut ready = readable.map_err(|error| Status::from_error(proto::ErrorKind::Internal, &error))?;
            // What is read says nothing more; it only makes the descriptor wait for the next.
            let _ = rustix::io::read(self.0.get_ref(), &mut [0_u8; 4096]);
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proto::ErrorKind;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[tokio::test]
    async fn what_grew_before_or_after_the_watch_began_is_seen_and_a_container_that_is_gone_ends_it() {
        let lack = Lack::watch(eventfd(1, EventfdFlags::NONBLOCK).unwrap()).unwrap();
        assert_eq!(lack.grown(1, async || Ok(3)).await.unwrap(), 3);
        let looks = Cell::new(0);
        let kills = || {
            looks.set(looks.get() + 1);
            std::future::ready(Ok(looks.get()))
        };
        assert_eq!((lack.grown(1, kills).await.unwrap(), looks.get()), (2, 2));
        let gone = async || Err(Status::new(ErrorKind::NotFound, "gone"));
        assert_eq!(lack.grown(1, gone).await.unwrap_err().kind, ErrorKind::NotFound);
    }
}
