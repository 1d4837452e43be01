//! Tells a service manager what the engine is about. Source: `sd_notify(3)`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What the engine is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It serves; also after a reload.
    Ready,
    /// It takes a changed configuration over.
    Reloading,
    /// It was told to stop.
    Stopping,
}

impl State {
    fn message(self) -> String {
        match self {
            Self::Ready => "READY=1\n".to_owned(),
            Self::Reloading => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
                format!("RELOADING=1\nMONOTONIC_USEC={micros}\n")
            }
            Self::Stopping => "STOPPING=1\n".to_owned(),
        }
    }
}

/// Tells it, if there is a service manager that wants to know.
pub fn tell(state: State) {
    if let Some(address) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(address.as_encoded_bytes(), state)
    {
        tracing::warn!(%error, ?state, "cannot tell the service manager");
    }
}

fn send(address: &[u8], state: State) -> std::io::Result<()> {
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(String::from_utf8_lossy(address).as_ref())?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.message().as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        for (state, expected) in [
            (State::Ready, "READY=1\n"),
            (State::Reloading, "RELOADING=1\nMONOTONIC_USEC="),
            (State::Stopping, "STOPPING=1\n"),
        ] {
            send(path.as_os_str().as_encoded_bytes(), state).unwrap();
            let mut buffer = [0; 128];
            let length = socket.recv(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(expected.as_bytes()), "{state:?}");
        }
    }
}
