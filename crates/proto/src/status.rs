//! Errors as they cross a process boundary.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The closed set of error kinds, in containerd's words. Source: containerd `errdefs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request can never be right.
    InvalidArgument,
    /// The request is right, but not in this state.
    FailedPrecondition,
    /// The request collides with another one.
    Conflict,
    /// There is nothing to do.
    NotModified,
    /// The caller or the daemon may not.
    PermissionDenied,
    /// No memory, disk, device or process is left.
    ResourceExhausted,
    /// Known, and not there yet.
    NotImplemented,
    /// Something that is needed does not answer; trying again may help.
    Unavailable,
    /// It took too long.
    DeadlineExceeded,
    /// Somebody took it back.
    Cancelled,
    /// A fault of ours.
    Internal,
}

impl ErrorKind {
    /// The HTTP status of the Engine API for this kind. Source: Docker Engine API reference, "Errors".
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict | Self::FailedPrecondition => 409,
            Self::InvalidArgument => 400,
            Self::NotModified => 304,
            Self::PermissionDenied => 403,
            Self::NotImplemented => 501,
            Self::Unavailable => 503,
            Self::ResourceExhausted | Self::DeadlineExceeded | Self::Cancelled | Self::Internal => 500,
        }
    }

    /// The ttrpc status code for this kind. Source: containerd `errdefs/errgrpc`, `google.rpc.Code`.
    #[must_use]
    pub fn ttrpc_code(self) -> ttrpc::Code {
        match self {
            Self::NotFound => ttrpc::Code::NOT_FOUND,
            Self::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Self::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Self::FailedPrecondition | Self::NotModified => ttrpc::Code::FAILED_PRECONDITION,
            Self::Conflict => ttrpc::Code::ABORTED,
            Self::PermissionDenied => ttrpc::Code::PERMISSION_DENIED,
            Self::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
            Self::NotImplemented => ttrpc::Code::UNIMPLEMENTED,
            Self::Unavailable => ttrpc::Code::UNAVAILABLE,
            Self::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Self::Cancelled => ttrpc::Code::CANCELLED,
            Self::Internal => ttrpc::Code::INTERNAL,
        }
    }

    /// The kind that a ttrpc status code stands for; codes that nobody of ours sends are [`ErrorKind::Internal`].
    #[must_use]
    pub fn from_ttrpc_code(code: ttrpc::Code) -> Self {
        match code {
            ttrpc::Code::NOT_FOUND => Self::NotFound,
            ttrpc::Code::ALREADY_EXISTS => Self::AlreadyExists,
            ttrpc::Code::INVALID_ARGUMENT => Self::InvalidArgument,
            ttrpc::Code::FAILED_PRECONDITION => Self::FailedPrecondition,
            ttrpc::Code::ABORTED => Self::Conflict,
            ttrpc::Code::PERMISSION_DENIED => Self::PermissionDenied,
            ttrpc::Code::RESOURCE_EXHAUSTED => Self::ResourceExhausted,
            ttrpc::Code::UNIMPLEMENTED => Self::NotImplemented,
            ttrpc::Code::UNAVAILABLE => Self::Unavailable,
            ttrpc::Code::DEADLINE_EXCEEDED => Self::DeadlineExceeded,
            ttrpc::Code::CANCELLED => Self::Cancelled,
            _ => Self::Internal,
        }
    }
}

/// An error that came from another process: what kind, what happened, and why, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Status {
    /// What a caller can act on.
    pub kind: ErrorKind,
    /// What failed.
    pub message: String,
    /// The chain of sources, outermost first.
    #[serde(default)]
    pub causes: Vec<String>,
}

impl Status {
    /// A status without causes.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new() }
    }

    /// Takes an error and its whole chain of sources.
    pub fn from_error(kind: ErrorKind, error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect();
        Self { kind, message: error.to_string(), causes }
    }

    /// The ttrpc error that carries this status.
    #[must_use]
    pub fn to_ttrpc(&self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.kind.ttrpc_code(), self.to_string()))
    }

    /// The status that a ttrpc call failed with. A connection that broke is [`ErrorKind::Unavailable`].
    #[must_use]
    pub fn from_ttrpc(error: &ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::new(ErrorKind::from_ttrpc_code(status.code()), status.message.clone())
            }
            other => Self::new(ErrorKind::Unavailable, other.to_string()),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_ttrpc() {
        let status =
            Status { kind: ErrorKind::NotFound, message: "exec failed".into(), causes: vec!["no such file".into()] };
        let back = Status::from_ttrpc(&status.to_ttrpc());
        assert_eq!((back.kind, back.message.as_str()), (ErrorKind::NotFound, "exec failed: no such file"));
    }
}
