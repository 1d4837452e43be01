//! containerd's CRI socket, as a kubelet calls it: unary gRPC over HTTP/2.
//!
//! By the crate `h2` alone: a gRPC crate would switch on features of `hyper` that the engine does not want, and have it built twice.
//! Source: gRPC over HTTP2 (grpc/doc/PROTOCOL-HTTP2.md).

use std::future::Future;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::daemon::Containerd;

/// Longer than containerd needs for the slowest step on a busy machine, which is a pod whose utility VM's template is made first.
const PATIENCE: Duration = Duration::from_secs(180);

/// A refusal: gRPC's code, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: u32,
    pub message: String,
}

/// A connection; each call waits for its answer.
pub struct Client {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    patience: Duration,
}

impl Client {
    pub fn of(containerd: &Containerd) -> Self {
        let (socket, patience) = (containerd.path("sock"), containerd.patience(PATIENCE));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let requests = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.unwrap();
            let (requests, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self { runtime, requests, patience }
    }

    /// Waits for something else of this test, not for ever.
    #[track_caller]
    pub fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        let waited = self.runtime.block_on(async { tokio::time::timeout(self.patience, what).await });
        waited.expect("no answer in time")
    }

    /// Shape: `method` with its service, such as `RuntimeService/Version`.
    #[track_caller]
    pub fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, Refused> {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(request.encoded_len()).unwrap());
        request.encode(&mut frame).unwrap();
        let answer = self.wait(exchange(self.requests.clone(), method, frame.freeze()))?;
        // One byte that says "not compressed", four with the length.
        Ok(A::decode(&answer[5..]).unwrap_or_else(|error| panic!("{method}: {error}")))
    }
}

async fn exchange(requests: SendRequest<Bytes>, method: &str, frame: Bytes) -> Result<Bytes, Refused> {
    let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (answer, mut body) = requests.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(frame, true).unwrap();
    let (head, mut body) = answer.await.unwrap().into_parts();
    let mut answer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.remaining()).unwrap();
        answer.put(data);
    }
    // An answer that is nothing but a refusal has its status in the head.
    let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
    match status(&trailers) {
        Refused { code: 0, .. } => Ok(answer.freeze()),
        refused => Err(refused),
    }
}

fn status(headers: &HeaderMap) -> Refused {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let code = text("grpc-status").expect("a gRPC status").parse().unwrap();
    Refused { code, message: text("grpc-message").unwrap_or_default() }
}
