//! Streams of execs and forwarded ports, by WebSocket: each message begins with the number of its channel.
//!
//! Source: kubernetes staging/src/k8s.io/kubelet/pkg/cri/streaming, `v4.channel.k8s.io`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::sched::{CloneFlags, setns};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::client::Client;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
/// How an exec ended, as JSON.
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;

/// One connection with its channels.
pub struct Stream<'a> {
    client: &'a Client,
    socket: WebSocketStream<tokio::net::TcpStream>,
    /// What came, by channel.
    came: [Vec<u8>; 5],
}

impl<'a> Stream<'a> {
    /// Shape: `url` is containerd's answer, which holds in the network namespace of the process `daemon`.
    pub fn open(client: &'a Client, daemon: u32, url: &str) -> Self {
        let address: SocketAddr = url.trim_start_matches("http://").split('/').next().unwrap().parse().unwrap();
        let netns = PathBuf::from(format!("/proc/{daemon}/ns/net"));
        let connection = connect(&netns, address).unwrap();
        connection.set_nonblocking(true).unwrap();
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
        let socket = client.wait(async {
            let connection = tokio::net::TcpStream::from_std(connection).unwrap();
            tokio_tungstenite::client_async(request, connection).await.unwrap().0
        });
        Self { client, socket, came: Default::default() }
    }

    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = Message::binary([&[channel], bytes].concat());
        self.client.wait(self.socket.send(message)).unwrap();
    }

    /// Reads until `what` has come on a channel.
    #[track_caller]
    pub fn until(&mut self, channel: u8, what: &str) -> String {
        while !self.text(channel).contains(what) {
            assert!(self.read(), "{what:?} did not come: {:?}", self.came);
        }
        self.text(channel)
    }

    /// Reads to the end, and answers what came on a channel.
    pub fn read_all(&mut self, channel: u8) -> String {
        while self.read() {}
        self.text(channel)
    }

    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.came[usize::from(channel)]).into_owned()
    }

    /// False at the end.
    fn read(&mut self) -> bool {
        match self.client.wait(self.socket.next()) {
            Some(Ok(Message::Binary(bytes))) => {
                if let Some((channel, bytes)) = bytes.split_first() {
                    self.came[usize::from(*channel)].extend_from_slice(bytes);
                }
                true
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => false,
            Some(Ok(_)) => true,
        }
    }
}

/// A socket stays in the namespace that it was made in; the thread takes its own along when it ends.
fn connect(netns: &Path, address: SocketAddr) -> io::Result<TcpStream> {
    let netns = File::open(netns).unwrap();
    let connect = move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        TcpStream::connect(address)
    };
    std::thread::spawn(connect).join().unwrap()
}

/// Says something to a server in a namespace, closes that way, and answers what comes until the other end closes, too.
pub fn echo(netns: &Path, address: &str, port: u16, text: &str) -> io::Result<String> {
    let mut connection = connect(netns, SocketAddr::new(address.parse().unwrap(), port))?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    std::thread::scope(|scope| {
        let mut writer = connection.try_clone()?;
        scope.spawn(move || writer.write_all(text.as_bytes()).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut said = String::new();
        connection.read_to_string(&mut said)?;
        Ok(said)
    })
}
