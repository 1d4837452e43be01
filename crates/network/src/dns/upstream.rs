//! Servers that know the rest of the world.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::namespace::Namespace;

/// How long one server may take. Source: moby `libnetwork`, `extIOTimeout`.
const PATIENCE: Duration = Duration::from_secs(4);
/// Servers that are asked, in their order.
const SERVERS: usize = 3;

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub address: IpAddr,
    /// The namespace from which it is asked; without one, the host's.
    pub from: Option<Namespace>,
}

/// The first answer of those servers; none when nobody answers.
pub(super) async fn ask(upstreams: &[Upstream], question: &[u8], by_udp: bool) -> Option<Vec<u8>> {
    for upstream in upstreams.iter().take(SERVERS) {
        let asked =
            async { if by_udp { ask_by_udp(upstream, question).await } else { ask_by_tcp(upstream, question).await } };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(server = %upstream.address, %error, "a name server does not answer"),
            Err(_) => tracing::debug!(server = %upstream.address, "a name server does not answer in time"),
        }
    }
    None
}

async fn ask_by_udp(upstream: &Upstream, question: &[u8]) -> io::Result<Vec<u8>> {
    let local: SocketAddr = match upstream.address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = match upstream.from.clone() {
        None => std::net::UdpSocket::bind(local)?,
        Some(namespace) => {
            let made =
                move || namespace.run(|| std::net::UdpSocket::bind(local).map_err(crate::NetworkError::kernel("ask")));
            tokio::task::spawn_blocking(made).await.map_err(io::Error::other)?.map_err(io::Error::other)?
        }
    };
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    // Connected: answers from elsewhere do not count.
    socket.connect((upstream.address, 53)).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // The first two bytes are the question's number.
        if length >= 12 && buffer.get(..2) == question.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_by_tcp(upstream: &Upstream, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = match upstream.from.clone() {
        None => tokio::net::TcpStream::connect((upstream.address, 53)).await?,
        Some(namespace) => {
            let address = SocketAddr::from((upstream.address, 53));
            let made = move || {
                let connect = || std::net::TcpStream::connect_timeout(&address, PATIENCE);
                namespace.run(|| connect().map_err(crate::NetworkError::kernel("ask")))
            };
            let stream =
                tokio::task::spawn_blocking(made).await.map_err(io::Error::other)?.map_err(io::Error::other)?;
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream)?
        }
    };
    super::write_framed(&mut stream, question).await?;
    super::read_framed(&mut stream).await
}
