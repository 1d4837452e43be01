//! Ports of the host that are reserved for containers, and what carries their traffic where the kernel does not.
//!
//! The firewall translates most connections, and goes on when the engine is gone. A socket is held all the same: it keeps others
//! from taking the port, its bind tells of a conflict before anything is done, and it serves what is not translated: IPv6 to a
//! container without IPv6, and connections from our own bridges.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::firewall::Protocol;

/// Connections that one port carries at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// Clients of one UDP port that are answered at once; further ones are dropped.
const CLIENTS: usize = 1024;
/// How long the kernel's queue of connections is.
const BACKLOG: i32 = 1024;
/// A UDP client that is silent this long is forgotten. Source: docker-proxy.
const SILENCE: Duration = Duration::from_secs(90);
/// How long a container may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// A port of the host that nobody else can take.
#[derive(Debug)]
pub struct ReservedPort {
    socket: Socket,
    address: SocketAddr,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl ReservedPort {
    /// Takes a port; port 0 is any that is free. An unspecified IPv6 address does not stand for IPv4 as well.
    ///
    /// # Errors
    /// What bind says: `AddrInUse` for a port that is taken.
    pub fn take(protocol: Protocol, address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = match protocol {
            Protocol::Tcp => SocketType::STREAM,
            Protocol::Udp => SocketType::DGRAM,
        };
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if protocol == Protocol::Tcp {
            // Connections of an earlier run that are still closing are no conflict.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        bind(&socket, &address)?;
        Self::of(protocol, socket)
    }

    fn of(protocol: Protocol, socket: OwnedFd) -> io::Result<Self> {
        let (socket, address) = match protocol {
            Protocol::Tcp => {
                listen(&socket, BACKLOG)?;
                let listener = TcpListener::from(socket);
                let address = listener.local_addr()?;
                (Socket::Tcp(listener), address)
            }
            Protocol::Udp => {
                let socket = UdpSocket::from(socket);
                let address = socket.local_addr()?;
                (Socket::Udp(socket), address)
            }
        };
        Ok(Self { socket, address })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Carries what comes in to `target`, until cancelled; the port is free then. When: in a runtime's context.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn serve(self, target: SocketAddr, stopping: CancellationToken) -> io::Result<()> {
        match self.socket {
            Socket::Tcp(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tokio::spawn(async move {
                    tokio::select! {
                        () = accept(listener, target, stopping.clone()) => {}
                        () = stopping.cancelled() => {}
                    }
                });
            }
            Socket::Udp(socket) => {
                let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
                tokio::spawn(async move {
                    tokio::select! {
                        () = relay(socket, target, stopping.clone()) => {}
                        () = stopping.cancelled() => {}
                    }
                });
            }
        }
        Ok(())
    }
}

async fn accept(listener: tokio::net::TcpListener, target: SocketAddr, stopping: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::debug!(%error, "a published port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let stopping = stopping.clone();
        tokio::spawn(async move {
            let _place = place;
            let carry = async {
                let connected = tokio::time::timeout(CONNECT, tokio::net::TcpStream::connect(target)).await;
                let mut server = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            };
            tokio::select! {
                carried = carry => if let Err(error) = carried {
                    tracing::debug!(%error, %target, "a connection by a published port ended early");
                },
                () = stopping.cancelled() => {}
            }
        });
    }
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<tokio::net::UdpSocket>>>>;

/// One socket for each client, so that the container's answers find their way.
async fn relay(socket: Arc<tokio::net::UdpSocket>, target: SocketAddr, stopping: CancellationToken) {
    let clients = Clients::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer could not be delivered.
            Err(error) => {
                tracing::debug!(%error, "a published port cannot receive");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let known = lock(&clients).get(&client).cloned();
        let server = match known {
            Some(server) => server,
            None if lock(&clients).len() >= CLIENTS => continue,
            None => match connect(target).await {
                Ok(server) => {
                    let server = Arc::new(server);
                    lock(&clients).insert(client, Arc::clone(&server));
                    let answers = answers(Arc::clone(&socket), Arc::clone(&server), client, Arc::clone(&clients));
                    let stopping = stopping.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = answers => {}
                            () = stopping.cancelled() => {}
                        }
                    });
                    server
                }
                Err(error) => {
                    tracing::debug!(%error, %target, "a published port cannot reach its container");
                    continue;
                }
            },
        };
        if let Err(error) = server.send(&buffer[..length]).await {
            tracing::debug!(%error, %target, "a datagram for a published port was lost");
        }
    }
}

async fn connect(target: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let local: SocketAddr =
        if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let server = tokio::net::UdpSocket::bind(local).await?;
    server.connect(target).await?;
    Ok(server)
}

async fn answers(
    socket: Arc<tokio::net::UdpSocket>,
    server: Arc<tokio::net::UdpSocket>,
    client: SocketAddr,
    clients: Clients,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(Ok(length)) = tokio::time::timeout(SILENCE, server.recv(&mut buffer)).await {
        if socket.send_to(&buffer[..length], client).await.is_err() {
            break;
        }
    }
    lock(&clients).remove(&client);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn local(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn a_port_is_taken_once() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let first = ReservedPort::take(protocol, local(0)).unwrap();
            let error = ReservedPort::take(protocol, first.address()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            let address = first.address();
            drop(first);
            ReservedPort::take(protocol, address).unwrap();
        }
    }

    #[tokio::test]
    async fn streams_are_carried_until_the_port_closes() {
        let server = tokio::net::TcpListener::bind(local(0)).await.unwrap();
        let port = ReservedPort::take(Protocol::Tcp, local(0)).unwrap();
        let (address, stopping) = (port.address(), CancellationToken::new());
        port.serve(server.local_addr().unwrap(), stopping.clone()).unwrap();
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ping");
        accepted.write_all(b"pong").await.unwrap();
        drop(accepted);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "pong");
        stopping.cancel();
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn each_client_gets_its_own_answers() {
        let server = tokio::net::UdpSocket::bind(local(0)).await.unwrap();
        let port = ReservedPort::take(Protocol::Udp, local(0)).unwrap();
        let address = port.address();
        port.serve(server.local_addr().unwrap(), CancellationToken::new()).unwrap();
        let clients = [connect(address).await.unwrap(), connect(address).await.unwrap()];
        let mut buffer = [0; 8];
        for (number, client) in (1..).zip(&clients) {
            client.send(&[number]).await.unwrap();
            let (_, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&[buffer[0] + 10], from).await.unwrap();
            assert_eq!(client.recv(&mut buffer).await.unwrap(), 1);
            assert_eq!(buffer[0], number + 10);
        }
    }
}
