//! One listener for all ports of a namespace's loopback.
//!
//! Who has a pod's ports forwarded connects to 127.0.0.1 or `::1` within the pod's namespace. Where the pod is a utility VM nobody
//! listens there: the kernel leads each such connection here, and says which port was meant.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use rustix::net::sockopt;

use crate::error::NetworkError;
use crate::firewall::redirect_loopback;
use crate::namespace::Namespace;
use crate::netlink::bring_up_loopback;

/// The sockets, one a family. Their rules are taken away by [`crate::give_back`], and lead nowhere without them.
#[derive(Debug)]
pub struct LoopbackListener {
    v4: TcpListener,
    /// None where the namespace has no IPv6.
    v6: Option<TcpListener>,
}

impl LoopbackListener {
    /// Listens, and leads every port there.
    ///
    /// # Errors
    /// When the kernel or `nft` refuses.
    pub fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        namespace.run(|| {
            let this = Self::bind().map_err(NetworkError::kernel("listen at a namespace's loopback"))?;
            let port = |listener: &TcpListener| {
                let address = listener.local_addr().map_err(NetworkError::kernel("find a listener's port"));
                address.map(|address| address.port())
            };
            redirect_loopback(port(&this.v4)?, this.v6.as_ref().map(port).transpose()?)?;
            Ok(this)
        })
    }

    fn bind() -> io::Result<Self> {
        bring_up_loopback()?;
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        v4.set_nonblocking(true)?;
        let v6 = match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(v6) => v6.set_nonblocking(true).map(|()| Some(v6))?,
            // Switched off in the kernel, or in this namespace.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => None,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// The sockets, which do not block.
    pub fn into_sockets(self) -> impl Iterator<Item = TcpListener> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }

    /// Where a connection that came by one of the sockets was going.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wanted(connection: &impl std::os::fd::AsFd, is_v6: bool) -> io::Result<SocketAddr> {
        Ok(if is_v6 {
            sockopt::ipv6_original_dst(connection)?.into()
        } else {
            sockopt::ip_original_dst(connection)?.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::foreign::give_back;

    #[test]
    fn every_port_of_the_loopback_leads_to_one_listener_that_knows_which_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(space) = Namespace::make(&folder.path().join("ns")) else {
            eprintln!("SKIPPED: no rights for a network namespace");
            return;
        };
        let connect = |address: SocketAddr| space.run(|| Ok(TcpStream::connect(address))).unwrap();
        let tested = LoopbackListener::open(&space).map(|listener| {
            for socket in listener.into_sockets() {
                let own = socket.local_addr().unwrap();
                for port in [1, 80, own.port(), u16::MAX] {
                    let wanted = SocketAddr::new(own.ip(), port);
                    let _client = connect(wanted).unwrap();
                    let (accepted, from) = socket.accept().unwrap();
                    assert_eq!(LoopbackListener::wanted(&accepted, from.is_ipv6()).unwrap(), wanted);
                }
            }
            // The listeners are gone.
            let refused = connect(([127, 0, 0, 1], 80).into()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            give_back(&space).unwrap();
        });
        Namespace::remove(space.path()).unwrap();
        match tested {
            Err(NetworkError::Firewall(text)) if text.contains("install nftables") => eprintln!("SKIPPED: no nft"),
            tested => tested.unwrap(),
        }
    }
}
