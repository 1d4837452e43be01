//! Talking to the kernel of the namespace in which a thread is.

use std::io;

use rtnetlink::{Handle, LinkUnspec, new_connection};

use crate::error::NetworkError;
use crate::failpoint;

/// Carries requests to the kernel of the namespace in which this thread is.
pub(crate) fn talk<T>(work: impl AsyncFnOnce(Handle) -> Result<T, NetworkError>) -> Result<T, NetworkError> {
    let failed = |source| NetworkError::Kernel { what: "talk netlink".into(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(failed)?;
        tokio::spawn(connection);
        work(handle).await
    })
}

/// Sends a request that changes something, and waits until it is done.
pub(crate) async fn answer(
    what: impl Into<String>,
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), NetworkError> {
    let what = what.into();
    failpoint::step(&what)?;
    request.await.map_err(NetworkError::netlink(what))
}

/// Brings `lo` up where this thread is.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    talk(async |handle| {
        let lo = LinkUnspec::new_with_name("lo").up().build();
        answer("bring up lo", handle.link().set(lo).execute()).await
    })
    .map_err(io::Error::other)
}

/// A setting below /proc/sys/net of this thread's namespace. A kernel without it, or with it read-only, does without.
pub(crate) fn set_sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    if std::fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return;
    }
    if let Err(error) = std::fs::write(&path, value) {
        tracing::debug!(path, %error, "cannot change a setting of the network");
    }
}
