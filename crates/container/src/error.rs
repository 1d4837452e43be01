//! What can go wrong with a container, each with its [`ErrorKind`].

use std::io;
use std::path::PathBuf;

use proto::ErrorKind;

use crate::cgroup::CgroupError;
use crate::failure::{CommandError, SetupError, kind_of_io};
use crate::hooks::HookError;
use crate::spec::SpecError;
use crate::user::UserError;
use crate::wire::WireError;

/// The helper process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be started.
    #[error("cannot start the helper process")]
    Spawn(#[source] io::Error),
    /// It cannot be talked to.
    #[error("cannot talk to the helper process")]
    Talk(#[source] WireError),
    /// It ended without an answer.
    #[error("the helper process ended without an answer")]
    Died,
}

impl HelperError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Spawn(source) if source.raw_os_error() == Some(libc::EAGAIN) => ErrorKind::ResourceExhausted,
            Self::Spawn(_) | Self::Talk(_) | Self::Died => ErrorKind::Internal,
        }
    }
}

/// A container that could not be created; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is one with this id.
    #[error("container {id} exists already")]
    Exists {
        /// Its id.
        id: String,
    },
    /// The bundle has no usable `config.json`, or asks for what cannot be given.
    #[error("the bundle cannot be used")]
    Spec(#[from] SpecError),
    /// The user is not in the image.
    #[error(transparent)]
    User(#[from] UserError),
    /// The command cannot be run.
    #[error("unable to start container process: {0}")]
    Command(CommandError),
    /// The OCI runtime could not set the container up.
    #[error("unable to start container process: {0}")]
    Setup(SetupError),
    /// What was asked for does not fit the image, such as a user that it does not have.
    #[error("{0}")]
    Refused(SetupError),
    /// The helper process failed.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// A cgroup could not be set up.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The state folder cannot be written.
    #[error("cannot write the container's state to {path}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CreateError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Spec(error) => error.kind(),
            Self::User(error) => error.kind(),
            Self::Command(error) => error.kind(),
            Self::Setup(error) | Self::Refused(error) => error.kind,
            Self::Helper(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::State { source, .. } => kind_of_io(source),
        }
    }
}

/// A container that is not there.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No container has this id.
    #[error("container {id} does not exist")]
    NotFound {
        /// The id asked for.
        id: String,
    },
    /// Its state cannot be read.
    #[error("cannot read the container's state from {path}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's cgroups cannot be found.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl LoadError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::State { source, .. } => kind_of_io(source),
            Self::Cgroup(error) => error.kind(),
        }
    }
}

/// A created container whose process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is not waiting to be started.
    #[error("the container is not in the created state")]
    NotCreated,
    /// The kernel refused the command.
    #[error("unable to start container process: {0}")]
    Command(CommandError),
    /// The process ended before it could execute the command; a startContainer hook failed, or somebody killed it.
    #[error("the container's process ended before it could execute its command")]
    Ended,
    /// The process cannot be reached.
    #[error("cannot reach the container's process")]
    Notify(#[source] io::Error),
    /// A poststart hook failed.
    #[error("poststart hook failed")]
    Hook(#[source] HookError),
}

impl StartError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotCreated => ErrorKind::FailedPrecondition,
            Self::Command(error) => error.kind(),
            Self::Ended | Self::Notify(_) | Self::Hook(_) => ErrorKind::Internal,
        }
    }
}

/// A further process that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container's first process is gone, or was not started.
    #[error("the container is not running")]
    NotRunning,
    /// The container is paused.
    #[error("the container is paused")]
    Paused,
    /// The process asks for what cannot be given.
    #[error("the process cannot be started")]
    Spec(#[from] SpecError),
    /// The user is not in the container.
    #[error(transparent)]
    User(#[from] UserError),
    /// The command cannot be run.
    #[error("unable to start container process: {0}")]
    Command(CommandError),
    /// The process could not be set up.
    #[error("unable to start container process: {0}")]
    Setup(SetupError),
    /// The helper process failed.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The container's cgroups cannot be found.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The seccomp filter cannot be handed to the process.
    #[error("cannot write the seccomp profile")]
    Filter(#[source] io::Error),
}

impl ExecError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRunning | Self::Paused => ErrorKind::FailedPrecondition,
            Self::Spec(error) => error.kind(),
            Self::User(error) => error.kind(),
            Self::Command(error) => error.kind(),
            Self::Setup(error) => error.kind,
            Self::Helper(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Filter(error) => kind_of_io(error),
        }
    }
}

/// A container that could not be removed; it may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Its first process is alive, and force was not asked for.
    #[error("the container is running")]
    Running,
    /// Its processes or cgroups do not go away.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its state folder cannot be removed.
    #[error("cannot remove {path}")]
    State {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DeleteError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Running => ErrorKind::FailedPrecondition,
            Self::Cgroup(error) => error.kind(),
            Self::State { source, .. } => kind_of_io(source),
        }
    }
}
