//! Whether the client at the other end of a connection is still there.
//!
//! HTTP cannot tell: a client may close its sending half and still want the answer, and while nothing is sent to one that is
//! gone, nobody notices. The socket can: it hangs up when the other side was closed altogether.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(250);

/// The other end of the connection that a request came by; among the request's extensions. Does not keep it open.
#[derive(Clone)]
pub struct Peer(Weak<OwnedFd>);

impl Peer {
    /// Of a connection, whose socket lives as long as `socket`.
    #[must_use]
    pub fn of(socket: &Arc<OwnedFd>) -> Self {
        Self(Arc::downgrade(socket))
    }

    /// Cancels something when the client goes away; stops looking when dropped.
    pub fn watch(&self, cancelled: CancellationToken) -> AbortOnDropHandle<()> {
        let socket = self.0.clone();
        let watching: JoinHandle<()> = tokio::spawn(async move {
            while !socket.upgrade().is_none_or(|socket| hung_up(&socket)) {
                tokio::time::sleep(INTERVAL).await;
            }
            cancelled.cancel();
        });
        AbortOnDropHandle::new(watching)
    }
}

fn hung_up(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error is one of this process, and says nothing about the client.
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
        && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_closed_end_is_noticed_and_a_half_closed_one_is_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = Arc::new(OwnedFd::from(ours));
        let cancelled = CancellationToken::new();
        let _watch = Peer::of(&socket).watch(cancelled.clone());
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(tokio::time::timeout(INTERVAL * 2, cancelled.cancelled()).await.is_err());
        drop(theirs);
        tokio::time::timeout(INTERVAL * 8, cancelled.cancelled()).await.unwrap();
    }
}
