//! A client that is slow to open an output that it will read.

use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::time::Instant;

use super::{OwnedFd, open};

/// After that the process starts without a reader.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

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
