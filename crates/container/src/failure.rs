//! The failures that other modules build on, and that travel between a caller and its helper.

use std::io;

use proto::ErrorKind;
use serde::{Deserialize, Serialize};

/// A command that cannot be run in the container. The texts are those that Docker's clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CommandError {
    /// There is nothing to run.
    #[error("no command specified")]
    Empty,
    /// A bare name that no folder of `$PATH` has.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath {
        /// The command as typed.
        name: String,
    },
    /// A path that does not exist.
    #[error("exec: {name:?}: stat {name}: no such file or directory")]
    Missing {
        /// The command as typed.
        name: String,
    },
    /// A file without permission to execute it.
    #[error("exec: {name:?}: permission denied")]
    Denied {
        /// The command as typed.
        name: String,
    },
    /// A folder. The kernel's own word for it stands there too: Docker's client before version 23 knows no other for exit
    /// code 126.
    #[error("exec: {name:?}: is a directory: permission denied")]
    Directory {
        /// The command as typed.
        name: String,
    },
    /// The kernel refused the file when it was to be executed, such as `exec format error`.
    #[error("exec {path}: {}", reason(*errno))]
    Refused {
        /// The file.
        path: String,
        /// The system call's error number.
        errno: i32,
    },
}

/// The error's name as C and Go write it.
fn reason(errno: i32) -> String {
    nix::errno::Errno::from_raw(errno).desc().to_ascii_lowercase()
}

impl CommandError {
    /// [`ErrorKind::NotFound`] for what does not exist (Docker's exit code 127), [`ErrorKind::PermissionDenied`] for what is
    /// there and cannot be invoked (126).
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Empty => ErrorKind::InvalidArgument,
            Self::NotInPath { .. } | Self::Missing { .. } => ErrorKind::NotFound,
            Self::Refused { errno, .. } if *errno == libc::ENOENT => ErrorKind::NotFound,
            Self::Refused { errno, .. } if *errno == libc::ENOMEM => ErrorKind::ResourceExhausted,
            Self::Denied { .. } | Self::Directory { .. } | Self::Refused { .. } => ErrorKind::PermissionDenied,
        }
    }
}

/// What the helper says about a set-up that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct SetupError {
    /// What a caller can act on, as far as the message tells.
    pub kind: ErrorKind,
    /// The step that failed and why, outermost first.
    pub message: String,
}

impl SetupError {
    /// Guesses the kind from the system's words: libcontainer passes on texts only.
    pub(crate) fn new(message: String) -> Self {
        const EXHAUSTED: [&str; 8] = [
            "no space left",
            "enospc",
            "cannot allocate memory",
            "enomem",
            "resource temporarily unavailable",
            "eagain",
            "too many open files",
            "emfile",
        ];
        const INVALID: [&str; 4] = ["spec", "invalid", "unsupported", "unknown"];
        let lower = message.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let kind = if has(&EXHAUSTED) {
            ErrorKind::ResourceExhausted
        } else if has(&INVALID) {
            ErrorKind::InvalidArgument
        } else {
            ErrorKind::Internal
        };
        Self { kind, message }
    }
}

/// The kind for a plain system error.
pub(crate) fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOENT) => ErrorKind::NotFound,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => ErrorKind::PermissionDenied,
        Some(libc::ENOSPC | libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::EDQUOT) => {
            ErrorKind::ResourceExhausted
        }
        Some(libc::EEXIST) => ErrorKind::AlreadyExists,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_errors_have_dockers_texts() {
        let name = || "foo".to_owned();
        let cases = [
            (CommandError::NotInPath { name: name() }, r#"exec: "foo": executable file not found in $PATH"#, 127),
            (CommandError::Missing { name: name() }, r#"exec: "foo": stat foo: no such file or directory"#, 127),
            (CommandError::Denied { name: name() }, r#"exec: "foo": permission denied"#, 126),
            (CommandError::Directory { name: name() }, r#"exec: "foo": is a directory: permission denied"#, 126),
            (CommandError::Refused { path: name(), errno: libc::ENOEXEC }, "exec foo: exec format error", 126),
            (CommandError::Refused { path: name(), errno: libc::ENOENT }, "exec foo: no such file or directory", 127),
        ];
        for (error, text, exit) in cases {
            assert_eq!(error.to_string(), text);
            let kind = if exit == 127 { ErrorKind::NotFound } else { ErrorKind::PermissionDenied };
            assert_eq!(error.kind(), kind, "{text}");
        }
    }
}
