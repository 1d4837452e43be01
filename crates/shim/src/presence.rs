//! Whether the containerd that asks for a container is still there when that is made. An open connection to its socket for events
//! tells: nothing is said on it, and it ends when containerd does, however.
//!
//! A container that was made for one that has ended is in nobody's way to be deleted: the next containerd has looked for its tasks when
//! this one was not there yet (its CRI plugin takes the pod for one without a task, and can never remove it).

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The path of a socket as containerd names it.
#[must_use]
pub fn path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// The containerd that a shim serves.
#[derive(Debug)]
pub struct Presence {
    path: Option<PathBuf>,
    seen: Mutex<Option<Arc<UnixStream>>>,
}

/// The containerd that asks for something.
#[derive(Debug)]
pub enum Asker {
    /// There is no way to tell.
    Unknown,
    /// It was there when it asked.
    Seen(Arc<UnixStream>),
    /// It had ended before it was heard.
    Gone,
}

impl Presence {
    /// Shape: where it takes events, if it does; our engine takes none.
    #[must_use]
    pub fn of(events: Option<&str>) -> Self {
        let path = events.map(|address| path(address).to_owned());
        let seen = path.as_deref().and_then(see);
        Self { path, seen: Mutex::new(seen.map(Arc::new)) }
    }

    /// Who asks just now.
    #[must_use]
    pub fn asker(&self) -> Asker {
        let Some(path) = &self.path else { return Asker::Unknown };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = seen.as_ref().filter(|stream| !has_ended(stream)) {
            return Asker::Seen(Arc::clone(stream));
        }
        match (see(path), &*seen) {
            // The next one.
            (Some(stream), _) => Asker::Seen(Arc::clone(seen.insert(Arc::new(stream)))),
            (None, Some(_)) => Asker::Gone,
            (None, None) => Asker::Unknown,
        }
    }
}

impl Asker {
    /// Nobody waits for the answer any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Seen(stream) => has_ended(stream),
            Self::Gone => true,
        }
    }
}

fn see(path: &Path) -> Option<UnixStream> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
    let (socket, address) = (socket.ok()?, SocketAddrUnix::new(path).ok()?);
    connect(&socket, &address).ok()?;
    Some(socket.into())
}

fn has_ended(mut stream: &UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_has_ended_is_told_from_who_was_never_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let address = format!("unix://{}", path.display());
        assert!(!Presence::of(None).asker().is_gone());
        let early = Presence::of(Some(&address));
        assert!(matches!(early.asker(), Asker::Unknown));

        let listener = UnixListener::bind(&path).unwrap();
        let presence = Presence::of(Some(&address));
        let (theirs, _) = listener.accept().unwrap();
        let asker = presence.asker();
        assert!(!asker.is_gone());
        drop((listener, theirs));
        assert!(asker.is_gone());
        // Before the next one is there, it is the old one's request.
        assert!(matches!(presence.asker(), Asker::Gone));

        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        for presence in [early, presence] {
            let asker = presence.asker();
            let (theirs, _) = listener.accept().unwrap();
            assert!(!asker.is_gone() && !presence.asker().is_gone());
            drop(theirs);
            assert!(asker.is_gone());
        }
    }
}
