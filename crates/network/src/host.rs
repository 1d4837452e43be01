//! What concerns the whole host: one engine at a time, and that packets are forwarded at all.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::error::NetworkError;
use crate::netlink::set_sysctl;

/// How long another engine may take to make a network.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps other engines of this host from choosing subnets and bridges meanwhile. Shape: a socket's abstract name, which like
/// routes and bridges belongs to the network namespace, and is free again whatever becomes of the engine.
#[derive(Debug)]
pub struct HostLock {
    _socket: UnixDatagram,
}

impl HostLock {
    /// Waits for its turn.
    ///
    /// # Errors
    /// When another engine does not come to an end.
    pub fn acquire() -> Result<Self, NetworkError> {
        let failed = || NetworkError::kernel("wait for another engine that makes a network");
        let name = SocketAddr::from_abstract_name("bulkhead-networks").map_err(failed())?;
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixDatagram::bind_addr(&name) {
                Ok(socket) => return Ok(Self { _socket: socket }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(failed()(error)),
            }
        }
    }
}

/// Lets the host forward packets.
///
/// # Errors
/// When it does not, and cannot be made to.
pub fn forward_packets(ipv6: bool) -> Result<(), NetworkError> {
    let on = |name: &str| {
        set_sysctl(name, "1");
        let path = format!("/proc/sys/net/{name}");
        match std::fs::read_to_string(&path).map(|text| text.trim() == "1") {
            Ok(true) => Ok(()),
            Ok(false) => Err(NetworkError::kernel(format!("let the host forward packets ({path} stays 0)"))(
                io::ErrorKind::PermissionDenied.into(),
            )),
            Err(error) => Err(NetworkError::kernel(format!("read {path}"))(error)),
        }
    };
    on("ipv4/ip_forward")?;
    if ipv6 { on("ipv6/conf/all/forwarding") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_engine_waits_for_the_other() {
        let first = HostLock::acquire().unwrap();
        let second = std::thread::spawn(|| HostLock::acquire().map(drop));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }
}
