//! The Engine API over a unix socket, or by SSH over another host's. Shape: one connection per request, since a command sends few and some are streams.

pub mod address;
pub mod body;
pub mod hijack;
pub mod lines;
pub mod stream;
pub mod url;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::preferences::Preferences;
use address::Address;
use body::RequestBody;
use hijack::Hijacked;
use lines::JsonLines;
use stream::Duplex;
use url::Url;

/// Longest answer that is read whole, bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or this user may not connect.
    #[error("cannot connect to the engine at {address}: {}", explain(source))]
    Connect {
        /// Where it should be.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The engine refused the request.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The engine's line.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to the engine broke: {0}")]
    Broken(String),
    /// The answer is no JSON of the expected form.
    #[error("the engine's answer is not understood: {0}")]
    Form(#[from] serde_json::Error),
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket; is bulkheadd running? (choose another with -H)".into(),
        io::ErrorKind::ConnectionRefused => "nobody listens there; is bulkheadd running?".into(),
        io::ErrorKind::PermissionDenied => "permission denied; be root, or a member of the socket's group".into(),
        _ => error.to_string(),
    }
}

impl From<hyper::Error> for ClientError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// One engine.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    preferences: Arc<Preferences>,
}

impl Client {
    /// A client of the engine at an address. Nothing is connected yet.
    #[must_use]
    pub fn new(address: Address, preferences: Preferences) -> Self {
        Self { address, preferences: Arc::new(preferences) }
    }

    /// What the user prefers.
    #[must_use]
    pub fn preferences(&self) -> &Preferences {
        &self.preferences
    }

    /// Where the engine is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A connection to the engine.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(&self) -> Result<Box<dyn Duplex>, ClientError> {
        let failed = |source| ClientError::Connect { address: self.address.clone(), source };
        stream::connect(&self.address).await.map_err(failed)
    }

    /// A request without a body, with the user's headers.
    fn request(&self, method: Method, url: &Url) -> request::Builder {
        let begun = Request::builder().method(method).uri(url.as_str()).header(header::HOST, "bulkhead");
        self.preferences.headers.iter().fold(begun, |request, (name, value)| request.header(name, value))
    }

    /// Sends a request and gives the answer, whatever its status.
    async fn exchange(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request; an answer that is an error becomes one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(&self, method: Method, url: &Url, body: RequestBody) -> Result<Response<Incoming>, ClientError> {
        self.send_as(method, url, body, None).await
    }

    /// As [`Client::send`], with credentials for a registry.
    async fn send_as(
        &self,
        method: Method,
        url: &Url,
        body: RequestBody,
        registry_auth: Option<&str>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = self.request(method, url);
        if let Some(auth) = registry_auth {
            request = request.header("X-Registry-Auth", auth);
        }
        if let Some(content_type) = body.content_type() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = self.exchange(request).await?;
        if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    /// `GET`, the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, url: &Url) -> Result<T, ClientError> {
        let response = self.send(Method::GET, url, RequestBody::empty()).await?;
        Ok(serde_json::from_slice(&whole(response).await?)?)
    }

    /// `POST` with a JSON body, the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, url: &Url, body: &impl Serialize) -> Result<T, ClientError> {
        let response = self.send(Method::POST, url, RequestBody::json(body)?).await?;
        Ok(serde_json::from_slice(&whole(response).await?)?)
    }

    /// `POST` without a body, the answer's text not looked at; waits for its end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn command(&self, url: &Url) -> Result<(), ClientError> {
        whole(self.send(Method::POST, url, RequestBody::empty()).await?).await.map(drop)
    }

    /// `DELETE`, the answer as text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&self, url: &Url) -> Result<Bytes, ClientError> {
        whole(self.send(Method::DELETE, url, RequestBody::empty()).await?).await
    }

    /// An answer of one JSON object per line.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines(&self, method: Method, url: &Url, body: RequestBody) -> Result<JsonLines, ClientError> {
        Ok(JsonLines::new(self.send(method, url, body).await?.into_body()))
    }

    /// As [`Client::lines`], with credentials for a registry as `X-Registry-Auth` has them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines_as(
        &self,
        method: Method,
        url: &Url,
        body: RequestBody,
        registry_auth: &str,
    ) -> Result<JsonLines, ClientError> {
        Ok(JsonLines::new(self.send_as(method, url, body, Some(registry_auth)).await?.into_body()))
    }

    /// `POST` that turns the connection into a plain stream.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hijack(&self, url: &Url, body: RequestBody) -> Result<Hijacked, ClientError> {
        let mut request =
            self.request(Method::POST, url).header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
        if let Some(content_type) = body.content_type() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = self.exchange(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        Hijacked::new(response).await
    }
}

/// Reads an answer whole.
async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let collected = limited.collect().await.map_err(|error| ClientError::Broken(error.to_string()))?;
    Ok(collected.to_bytes())
}

/// The engine's line out of an answer that is an error.
async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let text = whole(response).await.unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&text)
        .ok()
        .and_then(|value| value["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&text).trim().to_owned());
    let message = if message.is_empty() { format!("the engine answered {status}") } else { message };
    ClientError::Refused { status: status.as_u16(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_engine_is_one_clear_line() {
        let client = Client::new(Address::Unix("/nonexistent/engine.sock".into()), Preferences::default());
        let error = client.get::<serde_json::Value>(&Url::new("/info")).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot connect to the engine at unix:///nonexistent/engine.sock"), "{error}");
        assert!(error.contains("is bulkheadd running?") && !error.contains('\n'));
    }
}
