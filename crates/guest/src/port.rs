//! The one byte stream to the host: a virtio console port.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::unix::AsyncFd;

use crate::{devices, sys};

/// The port's name on the host's command line.
const NAME: &str = "dev.bulkhead.gcs";

/// A port that is open and silent.
pub struct SilentPort(File);

/// The port as an asynchronous byte stream. It ends when the host has closed its side.
pub struct Port(AsyncFd<OwnedFd>);

/// Finds and opens the port.
pub fn open() -> anyhow::Result<SilentPort> {
    let path = devices::find_port(NAME)?;
    Ok(SilentPort(File::options().read(true).write(true).open(path)?))
}

impl SilentPort {
    /// Says that the guest is ready to be frozen, and waits for the host's first byte, which comes after the fork. Between
    /// the two the process sleeps in one system call, and yamux does not exist yet: its first act would be to write.
    pub async fn at_freeze_point(mut self) -> io::Result<Port> {
        // Still blocking: the write waits until the host's side of the port is connected. The first half goes before all
        // preparation, the last byte after it.
        let (last, first) = proto::gcs::READY.split_last().ok_or(io::ErrorKind::InvalidData)?;
        self.0.write_all(first)?;
        fcntl_setfl(&self.0, fcntl_getfl(&self.0)? | OFlags::NONBLOCK)?;
        let port = Port(sys::watch(self.0.into())?);
        rustix::io::write(port.0.get_ref(), std::slice::from_ref(last))?;
        port.0.readable().await?.retain_ready();
        Ok(port)
    }
}

impl Port {
    /// Watches the port anew.
    ///
    /// The kernel reports a hang-up while the host's side of the port is not connected, which it may not be for a moment
    /// around a fork. tokio takes a hang-up for final and never clears it, so that from then on every wait for input would
    /// end at once, and an idle guest would spin. Only a new registration forgets it.
    fn watch_anew(&mut self) -> io::Result<()> {
        self.0 = sys::watch(self.0.get_ref().try_clone()?)?;
        Ok(())
    }
}

impl AsyncRead for Port {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let hung_up = ready.ready().is_read_closed();
            if let Ok(result) = ready.try_io(|port| Ok(rustix::io::read(port.get_ref(), &mut *buffer)?)) {
                return Poll::Ready(result);
            }
            // With the host gone for good the read above would have given end of file.
            if hung_up {
                drop(ready);
                self.watch_anew()?;
                // Whoever waits for the old registration, this task's writing side too, must ask the new one.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = ready.try_io(|port| Ok(rustix::io::write(port.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
