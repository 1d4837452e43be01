//! A client that is slow to open an output that it will read, or to read it.

use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::time::Instant;

use super::{OwnedFd, open};

/// After that the process starts without a reader.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
/// How long a process's end is kept back for what its client has not read.
const UNREAD: Duration = Duration::from_millis(500);

/// Waits until somebody reads a fifo: a process that ends sooner, and whose client hears of it before it has opened the fifo, has
/// written in vain. containerd's clients open theirs while they ask for the process. Shape: an end to write, which keeps the reader
/// until the caller has one of its own; `None` for what is no fifo, or when nobody comes.
///
/// Source: containerd cio, `openFifos` and `Cancel`; runc's shim waits without a limit.
pub async fn awaited(path: &Path) -> Option<OwnedFd> {
    let begin = Instant::now();
    loop {
        match open(path, OFlags::WRONLY | OFlags::NONBLOCK) {
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {}
            // What else is wrong the caller will find.
            other => return other.ok(),
        }
        if begin.elapsed() > PATIENCE {
            tracing::info!(path = %path.display(), "nobody reads this output yet");
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until what was written to fifos has been read, a while at most. A client whose open has just returned and that hears of the
/// process's end next takes the fifo for one that it could not open, and reads nothing: so the end comes after the reading. Shape:
/// `holds` are the shim's own read ends.
///
/// Source: containerd/fifo, `OpenFifo` and its context.
pub async fn drained(holds: &[OwnedFd]) {
    let begin = Instant::now();
    let has_unread = |hold: &OwnedFd| rustix::io::ioctl_fionread(hold).is_ok_and(|bytes| bytes > 0);
    while holds.iter().any(has_unread) && begin.elapsed() < UNREAD {
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_a_reader_but_not_for_ever() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let holds = [read];
        drained(&holds).await;
        rustix::io::write(&write, b"unread").unwrap();
        assert!(tokio::time::timeout(PAUSE * 20, drained(&holds)).await.is_err());
        let reader = holds[0].try_clone().unwrap();
        let reading = tokio::spawn(async move {
            tokio::time::sleep(PAUSE * 5).await;
            rustix::io::read(&reader, &mut [0; 16]).unwrap()
        });
        let begin = Instant::now();
        drained(&holds).await;
        assert!(begin.elapsed() < UNREAD);
        assert_eq!(reading.await.unwrap(), 6);
    }
}
