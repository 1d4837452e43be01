//! Connections beyond those that may be open: each is told why, if it asks soon, and closed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use proto::ErrorKind;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Most that are told at once; others are closed without a word.
const MOST: usize = 64;
/// How long one may take to ask and to be told.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells clients that there are too many of them.
#[derive(Clone)]
pub struct Refusal(Arc<Semaphore>);

impl Refusal {
    /// For all sockets of an engine.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }

    /// Answers whatever this client asks first with 503, and closes.
    pub fn tell(&self, stream: UnixStream) {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _until_told = permit;
            let service = hyper::service::service_fn(async |_: hyper::Request<Incoming>| Ok::<_, Infallible>(answer()));
            let told = hyper::server::conn::http1::Builder::new()
                .half_close(true)
                .title_case_headers(true)
                .serve_connection(TokioIo::new(stream), service);
            if !matches!(tokio::time::timeout(PATIENCE, told).await, Ok(Ok(()))) {
                tracing::debug!("a connection that was refused did not ask");
            }
        });
    }
}

fn answer() -> Response<Body> {
    let error = ApiError::new(ErrorKind::Unavailable, "too many connections are in use: try again later");
    let mut response = error.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
