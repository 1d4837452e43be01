//! The name server of a container on a network of its user's: it knows the neighbours, and asks the host's servers for the rest.
//!
//! A process container asks 127.0.0.11, port 53, in its own namespace. The server's sockets are on another port, to which two
//! nftables rules of that namespace lead, so that a container may have a name server of its own on port 53.

mod answer;
mod upstream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::error::NetworkError;
use crate::firewall::redirect_names;
use crate::namespace::Namespace;

pub use upstream::Upstream;

/// Where a container asks. Source: moby `libnetwork`, `resolverIPSandbox`.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Questions of one container that are worked on at once; further ones are dropped, as datagrams may be.
const QUESTIONS: usize = 256;
/// Connections of one container at once.
const CONNECTIONS: usize = 32;
/// A connection without a question is closed after this long.
const IDLE: Duration = Duration::from_secs(10);

/// Who knows the neighbours of one container.
pub trait Directory: Send + Sync + 'static {
    /// The addresses of a name, in lower case without a dot behind; none when nobody has it.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;
    /// The name of an address of a neighbour's.
    fn name_of(&self, address: IpAddr) -> Option<String>;
}

/// The sockets of a name server, bound in a namespace.
#[derive(Debug)]
pub struct NameSockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl NameSockets {
    /// Opens them in a process container's namespace, and leads port 53 of [`ADDRESS`] to them.
    ///
    /// # Errors
    /// When the kernel or `nft` refuses.
    pub fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        namespace.run(Self::open_here)
    }

    /// As [`NameSockets::open`], in the namespace in which this thread is.
    pub(crate) fn open_here() -> Result<Self, NetworkError> {
        let sockets = Self::bind(SocketAddr::from((ADDRESS, 0)))?;
        let port = |address: io::Result<SocketAddr>| address.map(|address| address.port());
        let failed = || NetworkError::kernel("open a name server's socket");
        let (udp, tcp) = (port(sockets.udp.local_addr()), port(sockets.tcp.local_addr()));
        redirect_names(ADDRESS, udp.map_err(failed())?, tcp.map_err(failed())?)?;
        Ok(sockets)
    }

    /// Opens them at an address of a namespace in which nobody else has port 53.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_at(namespace: &Namespace, address: Ipv4Addr) -> Result<Self, NetworkError> {
        namespace.run(|| Self::open_for_guest(address))
    }

    /// As [`NameSockets::open_at`], in the namespace in which this thread is.
    pub(crate) fn open_for_guest(address: Ipv4Addr) -> Result<Self, NetworkError> {
        Self::bind(SocketAddr::from((address, 53)))
    }

    fn bind(address: SocketAddr) -> Result<Self, NetworkError> {
        let bind = || {
            let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok(Self { udp, tcp })
        };
        bind().map_err(NetworkError::kernel("open a name server's socket"))
    }

    /// Answers until cancelled. When: in a runtime's context.
    ///
    /// # Errors
    /// When the runtime cannot watch the sockets.
    pub fn serve(
        self,
        directory: Arc<dyn Directory>,
        upstreams: Vec<Upstream>,
        stopping: CancellationToken,
    ) -> io::Result<()> {
        let server = Arc::new(Server { directory, upstreams, room: Arc::new(Semaphore::new(QUESTIONS)) });
        let udp = Arc::new(tokio::net::UdpSocket::from_std(self.udp)?);
        let tcp = tokio::net::TcpListener::from_std(self.tcp)?;
        tokio::spawn(async move {
            tokio::select! {
                () = datagrams(&server, udp) => {}
                () = connections(&server, tcp) => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(())
    }
}

/// What answers one container.
struct Server {
    directory: Arc<dyn Directory>,
    upstreams: Vec<Upstream>,
    room: Arc<Semaphore>,
}

impl Server {
    /// The answer to a question; none for what is no question.
    async fn answer(&self, question: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        match answer::local(question, &*self.directory, by_udp)? {
            answer::Local::Known(answer) => Some(answer),
            answer::Local::Unknown => match upstream::ask(&self.upstreams, question, by_udp).await {
                Some(answer) => Some(answer),
                None => answer::failure(question),
            },
        }
    }
}

async fn datagrams(server: &Arc<Server>, socket: Arc<tokio::net::UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Ok(place) = Arc::clone(&server.room).try_acquire_owned() else { continue };
        let (server, socket, question) = (Arc::clone(server), Arc::clone(&socket), buffer[..length].to_vec());
        tokio::spawn(async move {
            let _place = place;
            if let Some(answer) = server.answer(&question, true).await
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%error, "an answer to a question of names was lost");
            }
        });
    }
}

async fn connections(server: &Arc<Server>, listener: tokio::net::TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let server = Arc::clone(server);
        tokio::spawn(async move {
            let _place = place;
            while let Ok(Ok(question)) = tokio::time::timeout(IDLE, read_framed(&mut stream)).await {
                let Some(answer) = server.answer(&question, false).await else { return };
                if write_framed(&mut stream, &answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Two bytes of length before each message. Source: RFC 1035 §4.2.2.
async fn read_framed(stream: &mut tokio::net::TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut tokio::net::TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}
