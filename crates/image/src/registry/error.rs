//! Why a registry did not give, or did not take, what it was asked for.

use std::sync::Arc;

use proto::{Digest, ErrorKind};

use super::transport::TransportError;
use crate::config::ConfigError;
use crate::convert::LayerError;
use crate::reference::InvalidReference;
use crate::store::{ResolveError, StoreError};

/// A pull, a push or a question to a registry that failed; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be reached, or the connection failed, and trying again did not help.
    #[error("cannot reach the registry {host}")]
    Transport {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: TransportError,
    },
    /// It wants credentials, or others than it was given. (The words are Docker's; clients look for them.)
    #[error("{host}: unauthorized: {message}")]
    Unauthorized {
        /// Host and port.
        host: String,
        /// What it said.
        message: String,
    },
    /// There is no such repository, or it may not be seen.
    #[error("pull access denied for {repository}, repository does not exist or may require 'docker login': {message}")]
    Denied {
        /// The short name.
        repository: String,
        /// What the registry said.
        message: String,
    },
    /// There is no such manifest or blob.
    #[error("{what} not found: {message}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// What the registry said.
        message: String,
    },
    /// It answered with a status that is no use.
    #[error("the registry {host} answered {status}: {message}")]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said, cut to 300 characters.
        message: String,
    },
    /// It said or sent something that is not taken.
    #[error("{what} is refused: {reason}")]
    Refused {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// Content has another digest than it should.
    #[error("{what} should have the digest {expected} and has {actual}")]
    DigestMismatch {
        /// What.
        what: String,
        /// As asked for.
        expected: Digest,
        /// As found.
        actual: Digest,
    },
    /// The image is not there for the platform.
    #[error("no matching manifest for {wanted} in the manifest list entries, only {found}")]
    NoPlatform {
        /// As asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// The image's configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A layer is refused.
    #[error("failed to register layer {digest}")]
    Layer {
        /// Of the blob.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The store, a name in it, or an image that is not there.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// What somebody else who asked for the same was told.
    #[error(transparent)]
    Shared(Arc<RegistryError>),
}

/// What failed on this side of the network.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The store's files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such image to push.
    #[error("an image does not exist locally with the tag: {name}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// A temporary file, or a stored layer that cannot be read.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A name that the registry gave.
    #[error(transparent)]
    Name(#[from] InvalidReference),
    /// A setting that cannot be.
    #[error("{what}")]
    Setting {
        /// Which, and why.
        what: String,
    },
    /// The worker of a transfer ended, or another pull's failure took the layer along.
    #[error("the transfer was given up: {why}")]
    GivenUp {
        /// Why.
        why: String,
    },
}

impl RegistryError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Transport { source, .. } => source.kind(),
            Self::Unauthorized { .. } => ErrorKind::PermissionDenied,
            Self::Denied { .. } | Self::NotFound { .. } | Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::Status { .. } | Self::Refused { .. } | Self::DigestMismatch { .. } => ErrorKind::Internal,
            Self::Config(error) => error.kind(),
            Self::Layer { source, .. } => source.kind(),
            Self::Local(error) => error.kind(),
            Self::Shared(error) => error.kind(),
        }
    }

    /// True if the credentials were what was wrong.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        match self {
            Self::Unauthorized { .. } => true,
            Self::Shared(error) => error.is_unauthorized(),
            _ => false,
        }
    }

    pub(super) fn refused(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), reason: reason.into() }
    }

    pub(super) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| LocalError::Io { action, source }.into()
    }
}

impl LocalError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Resolve { source, .. } => source.kind(),
            Self::Name(_) | Self::Setting { .. } => ErrorKind::InvalidArgument,
            Self::Io { .. } | Self::GivenUp { .. } => ErrorKind::Internal,
        }
    }
}

impl From<StoreError> for RegistryError {
    fn from(error: StoreError) -> Self {
        Self::Local(error.into())
    }
}
