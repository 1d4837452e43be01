//! The master side of a container's pseudo terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys;

/// The size of a process's terminal from its specification, width first; 0 is unset.
#[must_use]
pub fn console_size(process: &oci_spec::runtime::Process) -> (u16, u16) {
    let side = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    process.console_size().as_ref().map_or((0, 0), |size| (side(size.width()), side(size.height())))
}

/// A pseudo terminal's master. Clones share it: one reads, one writes, one resizes.
#[derive(Debug, Clone)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    /// Takes a master. When: within the runtime.
    ///
    /// # Errors
    /// It cannot be made non-blocking or watched.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { master: Arc::new(sys::watch(master, Interest::READABLE | Interest::WRITABLE)?) })
    }

    /// Sets the size in characters; the foreground processes get SIGWINCH.
    ///
    /// # Errors
    /// A side is over 65535, or the terminal is gone.
    pub fn resize(&self, width: u32, height: u32) -> io::Result<()> {
        let side = |n: u32| u16::try_from(n).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "over 65535"));
        let size = Winsize { ws_row: side(height)?, ws_col: side(width)?, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.master.as_fd(), size)?)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.master.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match guard.try_io(|master| Ok(rustix::io::read(master.get_ref(), space)?)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The last process that had the other side open has closed it: that is the end of file.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.master.poll_write_ready(cx))?;
            match guard.try_io(|master| Ok(rustix::io::write(master.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no end of file to send: a shell ends by what is typed.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
