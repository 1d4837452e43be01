//! The conversation with a VMM's process. One request at a time; the guest's end may be told in between.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc, watch};
use vmm::protocol::{self, GuestEnd, MOST_DESCRIPTORS, Reply, Request};

use crate::sys;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum ControlError {
    /// The VMM says that it failed.
    Failed(String),
    /// It is gone, or does not speak the protocol.
    Lost(io::Error),
}

/// Our end of the socket.
#[derive(Debug)]
pub(super) struct Control {
    socket: Arc<AsyncFd<OwnedFd>>,
    turn: Mutex<Turn>,
    end: watch::Receiver<Option<GuestEnd>>,
}

/// What belongs to whoever asks now.
#[derive(Debug)]
struct Turn {
    replies: mpsc::Receiver<Reply>,
    /// Requests that were sent, and replies that came: an asker that was dropped leaves a reply behind.
    sent: u64,
    received: u64,
}

impl Control {
    /// A conversation, and the VMM's end of the socket.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let socket = Arc::new(sys::watch(ours)?);
        let (sender, replies) = mpsc::channel(1);
        let (tell_end, end) = watch::channel(None);
        tokio::spawn(listen(Arc::clone(&socket), sender, tell_end));
        let turn = Mutex::new(Turn { replies, sent: 0, received: 0 });
        Ok((Self { socket, turn, end }, theirs))
    }

    /// Says what is not answered. When: before all questions.
    pub(super) async fn tell(&self, request: &Request, files: &[OwnedFd]) -> io::Result<()> {
        self.send(request, files).await
    }

    /// Asks and waits for the answer.
    pub(super) async fn ask(&self, request: &Request, files: &[OwnedFd]) -> Result<Reply, ControlError> {
        let mut turn = self.turn.lock().await;
        let before = files.len().saturating_sub(1) / MOST_DESCRIPTORS * MOST_DESCRIPTORS;
        for chunk in files[..before].chunks(MOST_DESCRIPTORS) {
            self.send(&Request::Descriptors, chunk).await.map_err(ControlError::Lost)?;
        }
        self.send(request, &files[before..]).await.map_err(ControlError::Lost)?;
        turn.sent += 1;
        let own = turn.sent;
        loop {
            let gone = || ControlError::Lost(io::Error::from(io::ErrorKind::UnexpectedEof));
            let reply = turn.replies.recv().await.ok_or_else(gone)?;
            turn.received += 1;
            if turn.received < own {
                continue;
            }
            return match reply {
                Reply::Failed(why) => Err(ControlError::Failed(why)),
                reply => Ok(reply),
            };
        }
    }

    /// The guest's own end, once there is one.
    pub(super) fn end(&self) -> watch::Receiver<Option<GuestEnd>> {
        self.end.clone()
    }

    async fn send(&self, request: &Request, files: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        let send = |socket: &OwnedFd| protocol::send(socket, request, &descriptors);
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

/// Receives until the VMM is gone, or says what is no message.
async fn listen(socket: Arc<AsyncFd<OwnedFd>>, replies: mpsc::Sender<Reply>, end: watch::Sender<Option<GuestEnd>>) {
    loop {
        let received = socket.async_io(Interest::READABLE, |socket| protocol::receive::<Reply>(socket)).await;
        match received {
            Ok(Some((Reply::Ended(how), _))) => {
                end.send_replace(Some(how));
            }
            Ok(Some((reply, _))) => {
                if replies.send(reply).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a vmm's socket ended");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn serve(theirs: OwnedFd, answer: impl Fn(Request, usize) -> Vec<Reply> + Send + 'static) {
        std::thread::spawn(move || {
            let mut gathered = 0;
            while let Ok(Some((request, descriptors))) = protocol::receive::<Request>(&theirs) {
                gathered += descriptors.len();
                if request != Request::Descriptors {
                    for reply in answer(request, std::mem::take(&mut gathered)) {
                        protocol::send(&theirs, &reply, &[]).unwrap();
                    }
                }
            }
        });
    }

    #[tokio::test]
    async fn answers_belong_to_their_questions() {
        let (control, theirs) = Control::new().unwrap();
        serve(theirs, |request, files| match request {
            Request::Pause => {
                std::thread::sleep(Duration::from_millis(30));
                vec![Reply::Failed("late".into())]
            }
            Request::Console => vec![Reply::Console(vec![u8::try_from(files).unwrap()])],
            _ => vec![Reply::Ended(GuestEnd::Reset), Reply::Done],
        });
        let dropped = tokio::time::timeout(Duration::from_millis(5), control.ask(&Request::Pause, &[]));
        assert!(dropped.await.is_err());
        assert!(matches!(control.ask(&Request::Resume, &[]).await, Ok(Reply::Done)));
        assert_eq!(*control.end().borrow(), Some(GuestEnd::Reset));
        assert!(matches!(control.ask(&Request::Pause, &[]).await, Err(ControlError::Failed(why)) if why == "late"));
        for count in [0, 1, 63, 64, 65, 128, 200] {
            let files: Vec<OwnedFd> = (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
            let reply = control.ask(&Request::Console, &files).await;
            assert!(matches!(reply, Ok(Reply::Console(bytes)) if usize::from(bytes[0]) == count), "{count}");
        }
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_or_mad_is_lost() {
        let (control, theirs) = Control::new().unwrap();
        rustix::io::write(&theirs, &[0xff; 9]).unwrap();
        assert!(matches!(control.ask(&Request::Pause, &[]).await, Err(ControlError::Lost(_))));
        let (control, theirs) = Control::new().unwrap();
        drop(theirs);
        assert!(matches!(control.ask(&Request::Pause, &[]).await, Err(ControlError::Lost(_))));
    }
}
