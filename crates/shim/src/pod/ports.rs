//! Forwarded ports of a pod with isolation hyperv: who connects to the loopback of the pod's namespace, as containerd does for
//! `kubectl port-forward`, reaches what listens at the guest's.
//!
//! ```text
//!  containerd ── 127.0.0.1:N ─▶ listener of the namespace ── substream, N ──▶ guest ── 127.0.0.1:N
//! ```
//!
//! A guest that says nothing, or no end, holds a connection of its own pod's and nothing else: those are bounded, and so is what
//! is in flight, by yamux's windows.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostnet::LoopbackListener;
use proto::gcs::{CONNECTED, LoopbackPort, StreamHeader, StreamKind};
use proto::{ErrorKind, Status};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::hyperv::worker::Worker;
use crate::network;

/// Connections of a pod that are carried at once; more wait in the kernel's queue. They leave room for the pod's processes and
/// folders, which have substreams of the same connection.
const CONNECTIONS: usize = 64;
/// How long the guest may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Carries connections until it is dropped, or the VM ends.
pub struct Ports {
    _listeners: Vec<AbortOnDropHandle<()>>,
}

impl Ports {
    /// Forwards every port. When: the VM is personalized. Shape: `namespace` is the pod's.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn forward(namespace: PathBuf, worker: &Arc<Worker>) -> Result<Self, Status> {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let listener = network::listen_at_loopback(namespace).await?;
        let start = |socket: TcpListener| {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            let (worker, room) = (Arc::clone(worker), Arc::clone(&room));
            // A socket keeps its namespace, so none may outlive the VM.
            Ok(AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::select! {
                    () = accept(&socket, &worker, &room) => {}
                    _ = worker.vm.wait() => {}
                }
            })))
        };
        let started: io::Result<_> = listener.into_sockets().map(start).collect();
        let _listeners = started.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
        Ok(Self { _listeners })
    }
}

/// Never ends; what it has accepted ends with it.
async fn accept(socket: &tokio::net::TcpListener, worker: &Arc<Worker>, room: &Arc<Semaphore>) {
    let mut carried = JoinSet::new();
    loop {
        // Nobody closes it.
        let Ok(place) = Arc::clone(room).acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = socket.accept() => break accepted,
                Some(_) = carried.join_next() => {}
            }
        };
        match accepted {
            Ok((client, from)) => {
                let worker = Arc::clone(worker);
                carried.spawn(async move {
                    let _place = place;
                    carry(client, from.is_ipv6(), &worker).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a forwarded port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry(mut client: TcpStream, is_v6: bool, worker: &Worker) {
    if let Err(error) = exchange(&mut client, is_v6, worker).await {
        tracing::debug!(%error, "a forwarded connection ended early");
        // Its client is told so, too: a connection that just ends looks like an empty answer.
        if let Err(error) = client.set_zero_linger() {
            tracing::debug!(%error, "a forwarded connection ends as if it had been in order");
        }
    }
}

async fn exchange(client: &mut TcpStream, is_v6: bool, worker: &Worker) -> io::Result<()> {
    let port = LoopbackListener::wanted(client, is_v6)?.port();
    let header = StreamHeader { kind: StreamKind::Port, process: LoopbackPort { port, is_v6 }.number() };
    let connect = async {
        let mut guest = worker.vm.guest().open_stream(header).await.map_err(io::Error::other)?;
        match guest.read_u8().await {
            Ok(CONNECTED) => Ok(guest),
            Ok(other) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the guest said {other}"))),
            Err(_) => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
        }
    };
    let mut guest =
        tokio::time::timeout(CONNECT, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    copy_bidirectional(client, &mut guest).await.map(drop)
}
