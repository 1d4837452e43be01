//! What can go wrong with a container's files.

use std::io;

use proto::ErrorKind;
use rustix::io::Errno;

/// An operation on a container's files that failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Something at a path of the container.
    #[error("cannot {what} {path}")]
    Path {
        /// What was to be done.
        what: &'static str,
        /// The container's path, cut to 300 characters.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is to be unpacked into is no folder.
    #[error("extraction point is not a directory")]
    NotAFolder,
    /// It lies in a mount that nothing may be written to. The words are dockerd's, as those of the next one.
    #[error("mounted volume is marked read-only")]
    ReadOnlyMount,
    /// It lies in the container's root, which nothing may be written to.
    #[error("container rootfs is marked read-only")]
    ReadOnlyRoot,
    /// Something is mounted on what is to be replaced. The words are those of dockerd since 28.
    #[error("RemoveAll {0}: device or resource busy")]
    MountPoint(String),
    /// What is mounted in the container cannot be put in its place.
    #[error("cannot mount what the container has at {}", path.display())]
    Mount {
        /// Where.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A folder would be replaced by something else, or the other way round.
    #[error("cannot overwrite {there} {path:?} with {given}")]
    KeepKinds {
        /// What is there.
        there: &'static str,
        /// The container's path.
        path: String,
        /// What the archive has.
        given: &'static str,
    },
    /// The archive breaks the format.
    #[error("invalid tar archive: {0}")]
    Format(&'static str),
    /// The archive has an entry of a kind that is not supported.
    #[error("the tar archive has {0}, which cannot be unpacked")]
    Unsupported(&'static str),
    /// The entry's path leads out of the folder.
    #[error("the tar archive's entry {0:?} leads out of the folder it is to be unpacked into")]
    Outside(String),
    /// A name that means something else in a layer.
    #[error("{0:?} cannot be part of an image: names that begin with .wh. stand for deleted files there")]
    Name(String),
    /// Folders in folders.
    #[error("{0} lies too deep")]
    TooDeep(String),
    /// The owner that files are to have is nobody in the container. The words are dockerd's.
    #[error("unable to convert uid/gid chown string to host mapping: {0}")]
    Owner(String),
    /// The stream to or from whoever asked.
    #[error("the connection is broken")]
    Stream(#[source] io::Error),
    /// The thread cannot be confined to the container's root.
    #[error("cannot enter the container's root")]
    Confine(#[source] io::Error),
}

impl ArchiveError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Path { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::NOENT) => ErrorKind::NotFound,
                Some(Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL) => ErrorKind::InvalidArgument,
                Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => {
                    ErrorKind::ResourceExhausted
                }
                Some(Errno::ROFS) => ErrorKind::PermissionDenied,
                _ => ErrorKind::Internal,
            },
            Self::NotAFolder
            | Self::ReadOnlyMount
            | Self::ReadOnlyRoot
            | Self::KeepKinds { .. }
            | Self::Format(_)
            | Self::Outside(_)
            | Self::Name(_)
            | Self::Owner(_)
            | Self::TooDeep(_) => ErrorKind::InvalidArgument,
            Self::Unsupported(_) => ErrorKind::NotImplemented,
            Self::Stream(_) => ErrorKind::Unavailable,
            Self::Confine(_) | Self::Mount { .. } | Self::MountPoint(_) => ErrorKind::Internal,
        }
    }

    /// For `map_err`: something at a path.
    pub(super) fn at<E: Into<io::Error>>(what: &'static str, path: &[u8]) -> impl FnOnce(E) -> Self {
        let path = shown(path);
        move |source| Self::Path { what, path, source: source.into() }
    }
}

/// A path for a message.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().filter(|c| !c.is_control()).take(300).collect()
}
