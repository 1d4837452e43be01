//! Whether the client at the other end of a connection is still there.
//!
//! HTTP cannot tell: a client may close its sending half and still want the answer, and while nothing is sent to one that is
//! gone, nobody notices. The socket can: it hangs up when the other side was closed altogether.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;

use crate::connections::Busy;
use crate::sys;

/// How long it is not looked again after a wake-up for nothing.
const PAUSE: Duration = Duration::from_millis(250);

/// Returns when the other end of a socket was closed altogether. Never, when that cannot be seen. The socket may be used, and closed,
/// meanwhile.
pub fn hang_up<S: AsFd>(socket: &S) -> impl Future<Output = ()> + use<S> {
    let copy = socket.as_fd().try_clone_to_owned();
    async move {
        let watched = match copy {
            Ok(copy) => watch(copy).await,
            Err(error) => Err(error),
        };
        if let Err(error) = watched {
            tracing::warn!(%error, "it is not seen whether a client leaves");
            std::future::pending::<()>().await;
        }
    }
}

async fn watch(socket: OwnedFd) -> io::Result<()> {
    // The kernel tells of a hang-up whatever one is interested in; of this there is nothing on such sockets.
    let socket = sys::awaitable(socket, Interest::PRIORITY)?;
    loop {
        let mut woken = socket.ready(Interest::PRIORITY).await?;
        if hung_up(socket.get_ref()) {
            return Ok(());
        }
        woken.clear_ready();
        tokio::time::sleep(PAUSE).await;
    }
}

fn hung_up(socket: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error is one of this process, and says nothing about the client.
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
        && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// The other end of the connection that a request came by; among the request's extensions.
#[derive(Clone, Default)]
pub struct Peer {
    /// Cancelled when it is gone.
    pub gone: CancellationToken,
}

impl Peer {
    /// Cancels something when the client goes away; stops waiting for that when dropped.
    pub fn watch(&self, cancelled: CancellationToken) -> AbortOnDropHandle<()> {
        let gone = self.gone.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            gone.cancelled().await;
            cancelled.cancel();
        }))
    }

    /// A body that ends when the client is gone, though there is nothing to send yet; until then, the request is under way.
    pub fn hold(&self, body: Body, busy: Busy) -> Body {
        Body::new(Held { body, gone: Box::pin(self.gone.clone().cancelled_owned()), _busy: busy })
    }
}

struct Held {
    body: Body,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending if self.gone.as_mut().poll(context).is_ready() => {
                Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)))))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_closed_end_is_noticed_and_a_half_closed_one_is_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let watching = tokio::spawn(hang_up(&ours));
        theirs.shutdown(Shutdown::Write).unwrap();
        tokio::time::sleep(PAUSE).await;
        assert!(!watching.is_finished());
        drop(theirs);
        tokio::time::timeout(PAUSE * 8, watching).await.unwrap().unwrap();
    }
}
