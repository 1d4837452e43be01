//! Errors as a client of the Engine API sees them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use proto::{ErrorKind, Status};

/// A request that failed: what kind, and the one line for the user. Shape on the wire: the kind's HTTP status and
/// `{"message": "..."}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What a caller can act on.
    pub kind: ErrorKind,
    /// The line for the user, in dockerd's words where dockerd has this error.
    pub message: String,
    /// Set where dockerd answers with another HTTP status than the kind's.
    status: Option<StatusCode>,
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), status: None }
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// 501: known to Docker, not there yet here.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotImplemented, message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// 500 with an error's whole chain behind `what`.
    pub fn caused(what: impl std::fmt::Display, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::internal(format!("{what}: {}", chain(error)))
    }

    /// The same error under another HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// The same error with `what` before its text.
    #[must_use]
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The HTTP status it is answered with.
    #[must_use]
    pub fn http_status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| {
            StatusCode::from_u16(self.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        })
    }
}

/// An error and its sources on one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    Status::from_error(ErrorKind::Internal, error).to_string()
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self::new(status.kind, status.to_string())
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal(format!("a worker of the engine ended early: {error}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.http_status();
        // Anything else is the client's affair, or a registry's; the log would be its to fill.
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(%status, "{}", self.message);
        } else if status.is_client_error() || status.is_server_error() {
            tracing::debug!(%status, "{}", self.message);
        }
        if status == StatusCode::NOT_MODIFIED {
            return status.into_response();
        }
        let body = serde_json::json!({ "message": self.message }).to_string() + "\n";
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_becomes_its_status_unless_dockerd_differs() {
        assert_eq!(ApiError::conflict("x").http_status(), StatusCode::CONFLICT);
        assert_eq!(ApiError::not_implemented("x").http_status(), StatusCode::NOT_IMPLEMENTED);
        let error = ApiError::not_found("x").with_status(StatusCode::BAD_REQUEST);
        assert_eq!(error.http_status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_status_of_the_shim_keeps_kind_and_causes() {
        let status = Status { kind: ErrorKind::NotFound, message: "a".into(), causes: vec!["b".into()] };
        let error = ApiError::from(status);
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NotFound, "a: b"));
    }
}
