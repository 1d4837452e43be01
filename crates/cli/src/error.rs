//! Why a command failed, and with which code it ends.

use std::io;
use std::path::Path;

use crate::client::ClientError;
use crate::client::address::UnknownAddress;
use crate::output::listing::PrintError;
use crate::output::template::TemplateError;

/// The exit code of a command that could not be understood, and of a `run` that failed before the container's command.
/// Source: docker run reference, "Exit status".
pub const REFUSED: u8 = 125;

/// A command that failed. Its text is the one line that the user sees.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The engine, or the way to it.
    #[error(transparent)]
    Engine(#[from] ClientError),
    /// A value on the command line that cannot be.
    #[error("{0}")]
    Usage(String),
    /// A file, a stream or the terminal.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// `-H`, or what stands for it.
    #[error(transparent)]
    Address(#[from] UnknownAddress),
    /// `--format`.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A list that cannot be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
    /// The engine answered something that makes no sense here.
    #[error("the engine's answer is not understood: {0}")]
    Answer(String),
    /// What the engine told of a failure after it had begun to answer.
    #[error("{0}")]
    Failed(String),
    /// A failure with an exit code of its own.
    #[error("{error}")]
    Coded {
        /// The code.
        code: u8,
        /// What failed.
        error: Box<CliError>,
    },
    /// Everything that is to be said was said; only the code is left.
    #[error("exit code {0}")]
    Silent(u8),
}

/// What commands return.
pub type CliResult<T> = Result<T, CliError>;

impl CliError {
    /// A local failure: `what` was tried.
    pub fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Local { what, source }
    }

    /// A file that cannot be opened or read.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::local(format!("cannot read {}", path.display()))
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        match self {
            silent @ Self::Silent(_) => silent,
            error => Self::Coded { code, error: Box::new(error) },
        }
    }

    /// The code with which the program ends.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Coded { code, .. } | Self::Silent(code) => *code,
            Self::Usage(_) | Self::Address(_) => REFUSED,
            Self::Engine(_)
            | Self::Local { .. }
            | Self::Template(_)
            | Self::Print(_)
            | Self::Answer(_)
            | Self::Failed(_) => 1,
        }
    }

    /// What is to be printed, if anything is left to say. A reader such as `head` that has seen enough is no fault.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        let seen_enough = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        match self {
            Self::Silent(_) => None,
            Self::Print(PrintError::Write(error)) if seen_enough(error) => None,
            Self::Coded { error, .. } => error.message(),
            other => Some(other.to_string()),
        }
    }

    /// True if the engine said that there is no such thing, or that it does not know such things.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Engine(ClientError::Refused { status: 404 | 501, .. }))
    }

    /// True if the engine said that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Engine(ClientError::Refused { status: 404, .. }))
    }
}

/// The code for a container whose command could not be started, from the engine's text. Source: docker/cli
/// `runStartContainerErr`.
#[must_use]
pub fn start_code(error: &CliError) -> u8 {
    let text = error.to_string().to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["executable file not found", "no such file or directory", "system cannot find the file"]) {
        127
    } else if has(&["permission denied", "is a directory"]) {
        126
    } else {
        REFUSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, message: &str) -> CliError {
        ClientError::Refused { status, message: message.into() }.into()
    }

    #[test]
    fn the_containers_faults_have_dockers_codes() {
        assert_eq!(start_code(&refused(400, "exec: \"x\": executable file not found in $PATH")), 127);
        assert_eq!(start_code(&refused(400, "exec: \"/\": permission denied")), 126);
        assert_eq!(start_code(&refused(500, "no memory")), 125);
        assert_eq!(refused(500, "x").with_code(127).code(), 127);
        assert_eq!(CliError::Silent(3).with_code(9).code(), 3);
        let closed = || CliError::from(PrintError::Write(io::ErrorKind::BrokenPipe.into()));
        assert_eq!((closed().message(), closed().with_code(3).message(), closed().code()), (None, None, 1));
        assert!(refused(404, "x").is_not_found() && !refused(409, "x").is_not_found());
    }
}
