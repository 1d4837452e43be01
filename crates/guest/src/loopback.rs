//! Connections from the host to what listens at the guest's own loopback: a pod's forwarded ports.
//!
//! The host bounds how many there are, and yamux's windows what is in flight.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proto::gcs::{CONNECTED, LoopbackPort};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::substreams::Substream;

/// Carries each substream to the port that it names, until the host goes.
pub async fn serve_all(mut wanted: mpsc::UnboundedReceiver<(u32, Substream)>) {
    while let Some((number, substream)) = wanted.recv().await {
        let Some(port) = LoopbackPort::of(number) else {
            tracing::warn!(number, "substream dropped: no port");
            continue;
        };
        tokio::spawn(async move {
            if let Err(error) = carry(port, substream).await {
                tracing::debug!(?port, "a forwarded connection ended early: {error}");
            }
        });
    }
}

/// A substream that is dropped is reset, which tells the host that nobody listens, or that the connection broke.
async fn carry(port: LoopbackPort, mut host: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut server = connect(port).await?;
    host.write_all(&[CONNECTED]).await?;
    host.flush().await?;
    copy_bidirectional(&mut host, &mut server).await.map(drop)
}

/// Whoever asks for 127.0.0.1 and is refused would ask for `::1` next, as a kubelet's runtime does. The host has accepted its
/// connection already, so that is done here.
async fn connect(LoopbackPort { port, is_v6 }: LoopbackPort) -> io::Result<TcpStream> {
    let v6 = (IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    if is_v6 {
        return TcpStream::connect(v6).await;
    }
    match TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await {
        Ok(server) => Ok(server),
        Err(refused) => TcpStream::connect(v6).await.map_err(|_| refused),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_ways_are_carried_and_each_end_for_itself() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = LoopbackPort { port: listener.local_addr().unwrap().port(), is_v6: false };
        let (mut host, guest) = tokio::io::duplex(16);
        let carried = tokio::spawn(carry(port, guest));
        let mut server = listener.accept().await.unwrap().0;
        assert_eq!(host.read_u8().await.unwrap(), CONNECTED);
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"an answer after the question's end").await.unwrap();
        drop(server);
        text.clear();
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "an answer after the question's end");
        carried.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn where_nobody_listens_nothing_is_said() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        for is_v6 in [false, true] {
            let (mut host, guest) = tokio::io::duplex(16);
            carry(LoopbackPort { port, is_v6 }, guest).await.unwrap_err();
            assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        }
    }
}
