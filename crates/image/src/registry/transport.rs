//! HTTP/1.1 over TCP or TLS: connections, and answers that are read within bounds of size and time.
//!
//! HTTP/2 is not spoken, so its floods are none of our worries. Bodies are never decompressed here.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_ENCODING, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use proto::ErrorKind;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::settings::{RegistrySettings, Security, Timing, authority};
use super::tls::Trust;

/// Bytes of an answer's head. Real ones are under 4 KiB.
const MAX_HEAD_BYTES: usize = 128 << 10;
const MAX_HEADERS: usize = 100;
/// Idle connections kept for one registry.
const MAX_IDLE: usize = 8;
/// Docker's clients tell theirs; some registries turn away what they do not know.
const AGENT: &str = concat!("docker/28.5.2 bulkhead/", env!("CARGO_PKG_VERSION"));

/// The way to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Name resolution, TCP.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// TLS, and the certificate among it.
    #[error("no trusted connection")]
    Tls(#[source] io::Error),
    /// It speaks no TLS.
    #[error("it does not answer by TLS (a registry with plain HTTP must be named with --insecure-registry)")]
    NotTls,
    /// An address that nobody may lead us to.
    #[error("the address {address} is not allowed as the target of a redirection")]
    Address {
        /// Which.
        address: IpAddr,
    },
    /// HTTP.
    #[error("the HTTP connection failed")]
    Http(#[source] hyper::Error),
    /// Nothing came for too long, or too little.
    #[error("no answer for {seconds} s, or too slow a one", seconds = waited.as_secs())]
    Stalled {
        /// How long.
        waited: Duration,
    },
    /// An answer that is longer than allowed.
    #[error("the answer is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// A body that is compressed although nobody asked for it.
    #[error("the answer has a Content-Encoding, which was not asked for")]
    Encoded,
    /// The body ended early.
    #[error("the connection was cut")]
    Cut,
}

impl TransportError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Stalled { .. } => ErrorKind::DeadlineExceeded,
            Self::TooLong { .. } | Self::Encoded | Self::Address { .. } => ErrorKind::Internal,
            _ => ErrorKind::Unavailable,
        }
    }

    /// True if trying again may help: not with a certificate that is wrong, nor with an answer that breaks the rules.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::TimedOut
            ),
            Self::Http(error) => !error.is_parse(),
            Self::Stalled { .. } | Self::Cut => true,
            Self::Tls(_) | Self::NotTls | Self::Address { .. } | Self::TooLong { .. } | Self::Encoded => false,
        }
    }
}

pub(super) type OutBody = UnsyncBoxBody<Bytes, io::Error>;

pub(super) fn empty() -> OutBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> OutBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// How a request's target was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Led {
    /// Named by the user.
    ByUser,
    /// By a registry; `local`: one on this host, which may lead to this host.
    ByRegistry { local: bool },
}

/// One request.
pub(super) struct Outgoing<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub headers: &'a [(HeaderName, HeaderValue)],
    pub body: OutBody,
    pub security: Security,
    pub led: Led,
    /// Bytes of the body that were taken; as long as it grows, the answer may wait.
    pub sent: Option<Arc<AtomicU64>>,
}

type Key = (String, String, Security);
/// Connections that nobody uses.
type Idle = Arc<Mutex<HashMap<Key, Vec<SendRequest<OutBody>>>>>;

/// Makes connections and keeps those that are idle.
pub(super) struct Transport {
    trust: Trust,
    timing: Timing,
    idle: Idle,
}

impl Transport {
    pub fn new(settings: &RegistrySettings) -> Self {
        let trust = Trust::new(settings.certificates.clone());
        Self { trust, timing: settings.timing, idle: Arc::default() }
    }

    /// Sends a request and waits for the answer's head.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> Result<Answer, TransportError> {
        let key = (outgoing.url.scheme().to_owned(), authority(outgoing.url), outgoing.security);
        // Whatever a registry led us to is connected to anew, after a look at its address.
        let pooled = match outgoing.led {
            Led::ByUser => self.take_idle(&key).await,
            Led::ByRegistry { .. } => None,
        };
        let mut sender = match pooled {
            Some(sender) => sender,
            None => timeout(self.timing.connect, self.connect(outgoing.url, outgoing.security, outgoing.led))
                .await
                .map_err(|_| TransportError::Stalled { waited: self.timing.connect })??,
        };
        let keep = (outgoing.led == Led::ByUser).then(|| (key, Arc::clone(&self.idle)));
        let head = outgoing.method == Method::HEAD;
        let sent = outgoing.sent.clone();
        let request = request(outgoing)?;
        let answer = self.answered(sender.send_request(request), sent.as_deref()).await?;
        let (parts, body) = answer.map_err(TransportError::Http)?.into_parts();
        let connection = keep.map(|(key, idle)| Lent { sender, key, idle });
        let timing = self.timing;
        let mut answer = Answer { status: parts.status, headers: parts.headers, body, connection, timing };
        if head {
            answer.give_back();
        }
        Ok(answer)
    }

    /// Waits for an answer as long as the body moves on.
    async fn answered<T>(
        &self,
        answer: impl Future<Output = T>,
        sent: Option<&AtomicU64>,
    ) -> Result<T, TransportError> {
        let mut answer = std::pin::pin!(answer);
        let mut before = 0;
        loop {
            if let Ok(answer) = timeout(self.timing.idle, &mut answer).await {
                return Ok(answer);
            }
            let now = sent.map_or(before, |sent| sent.load(Ordering::Relaxed));
            if now == before {
                return Err(TransportError::Stalled { waited: self.timing.idle });
            }
            before = now;
        }
    }

    async fn take_idle(&self, key: &Key) -> Option<SendRequest<OutBody>> {
        loop {
            let mut sender = lock(&self.idle).get_mut(key)?.pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self, url: &Url, security: Security, led: Led) -> Result<SendRequest<OutBody>, TransportError> {
        let stream = dial(url, led).await?;
        if url.scheme() == "http" {
            return handshake(TokioIo::new(stream)).await;
        }
        let config = self.trust.config(&authority(url), security).map_err(TransportError::Tls)?;
        let name = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(|error| TransportError::Tls(io::Error::other(error)))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(tls_fault)?;
        handshake(TokioIo::new(stream)).await
    }
}

fn tls_fault(error: io::Error) -> TransportError {
    let fault = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match fault {
        Some(rustls::Error::InvalidMessage(_)) => TransportError::NotTls,
        // A plain server may hang up at once.
        None if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) =>
        {
            TransportError::NotTls
        }
        _ => TransportError::Tls(error),
    }
}

async fn dial(url: &Url, led: Led) -> Result<TcpStream, TransportError> {
    let invalid = || TransportError::Connect(io::Error::new(io::ErrorKind::InvalidInput, "no host in the URL"));
    let port = url.port_or_known_default().ok_or_else(invalid)?;
    let addresses: Vec<SocketAddr> = match url.host().ok_or_else(invalid)? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(address, port).into()],
        Host::Domain(name) => tokio::net::lookup_host((name, port)).await.map_err(TransportError::Connect)?.collect(),
    };
    if let Led::ByRegistry { local } = led
        && let Some(address) = addresses.iter().map(SocketAddr::ip).find(|address| !may_lead_to(*address, local))
    {
        return Err(TransportError::Address { address });
    }
    let stream = TcpStream::connect(&addresses[..]).await.map_err(TransportError::Connect)?;
    // Requests are small, and the answer is waited for.
    stream.set_nodelay(true).map_err(TransportError::Connect)?;
    Ok(stream)
}

/// False for addresses that only this host, or a cloud's metadata service, answers at.
pub(super) fn may_lead_to(address: IpAddr, local: bool) -> bool {
    match address.to_canonical() {
        address if address.is_loopback() => local,
        IpAddr::V4(address) => {
            !(address.is_link_local() || address.is_unspecified() || address.is_broadcast() || address.is_multicast())
        }
        IpAddr::V6(address) => !(address.is_unicast_link_local() || address.is_unspecified() || address.is_multicast()),
    }
}

async fn handshake<S>(stream: TokioIo<S>) -> Result<SendRequest<OutBody>, TransportError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake(stream)
        .await
        .map_err(TransportError::Http)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a registry ended");
        }
    });
    Ok(sender)
}

fn request(outgoing: Outgoing<'_>) -> Result<Request<OutBody>, TransportError> {
    let url = outgoing.url;
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let mut request = Request::new(outgoing.body);
    let invalid = |_| TransportError::Connect(io::Error::new(io::ErrorKind::InvalidInput, "the URL cannot be sent"));
    *request.method_mut() = outgoing.method;
    *request.uri_mut() = path.parse().map_err(invalid)?;
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&authority(url));
    headers.insert(HOST, host.map_err(|_| TransportError::Connect(io::ErrorKind::InvalidInput.into()))?);
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.extend(outgoing.headers.iter().cloned());
    Ok(request)
}

/// A connection that goes back when its answer was read.
struct Lent {
    sender: SendRequest<OutBody>,
    key: Key,
    idle: Idle,
}

/// An answer whose body is read piece by piece.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    connection: Option<Lent>,
    timing: Timing,
}

impl Answer {
    /// The next piece; `None` at the end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let frame = timeout(self.timing.idle, self.body.frame()).await;
            match frame.map_err(|_| TransportError::Stalled { waited: self.timing.idle })? {
                None => {
                    self.give_back();
                    return Ok(None);
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) if error.is_incomplete_message() || error.is_body_write_aborted() => {
                    return Err(TransportError::Cut);
                }
                Some(Err(error)) => return Err(TransportError::Http(error)),
            }
        }
    }

    /// The whole body, at most `limit` bytes, within a bounded time.
    pub async fn bytes(&mut self, limit: u64) -> Result<Bytes, TransportError> {
        self.check_plain()?;
        let deadline = Instant::now() + self.timing.stall;
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(TransportError::TooLong { limit });
            }
            if Instant::now() > deadline {
                return Err(TransportError::Stalled { waited: self.timing.stall });
            }
        }
        Ok(bytes.freeze())
    }

    /// Refuses a body that is compressed.
    pub fn check_plain(&self) -> Result<(), TransportError> {
        match self.header(CONTENT_ENCODING) {
            None | Some("identity") => Ok(()),
            Some(_) => Err(TransportError::Encoded),
        }
    }

    /// A header that is text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn give_back(&mut self) {
        let Some(Lent { sender, key, idle }) = self.connection.take() else { return };
        let mut idle = lock(&idle);
        let kept = idle.entry(key).or_default();
        if kept.len() < MAX_IDLE && !sender.is_closed() {
            kept.push(sender);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f37_a_redirection_does_not_lead_to_this_host_or_its_link() {
        for (address, local, allowed) in [
            ("93.184.216.34", false, true),
            ("10.0.0.7", false, true),
            ("127.0.0.1", false, false),
            ("127.0.0.1", true, true),
            ("::1", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("169.254.169.254", false, false),
            ("169.254.169.254", true, false),
            ("::ffff:169.254.169.254", true, false),
            ("fe80::1", true, false),
            ("0.0.0.0", true, false),
            ("::", true, false),
        ] {
            assert_eq!(may_lead_to(address.parse().unwrap(), local), allowed, "{address} {local}");
        }
    }
}
