//! What can go wrong with the kernel's networks.

use std::io;

use proto::ErrorKind;

/// Something that the kernel or the program `nft` did not do.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A system call or a file.
    #[error("cannot {what}")]
    Kernel {
        /// What was to be done.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A request by netlink.
    #[error("cannot {what}")]
    Netlink {
        /// What was to be done.
        what: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// The program `nft` refused, or is not there.
    #[error("cannot change the firewall: {0}")]
    Firewall(String),
    /// A link of this name is there and is not ours.
    #[error("a network link named {0:?} exists already and is not this engine's")]
    Taken(String),
    /// Somebody's namespace has something that a utility VM cannot have.
    #[error("a utility VM cannot have what its network namespace has: {0}")]
    Unsuitable(String),
    /// There is no such link.
    #[error("there is no network link {0:?}")]
    NoLink(String),
}

impl NetworkError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Taken(_) => ErrorKind::Conflict,
            Self::Unsuitable(_) => ErrorKind::NotImplemented,
            Self::Kernel { .. } | Self::Netlink { .. } | Self::Firewall(_) | Self::NoLink(_) => ErrorKind::Internal,
        }
    }

    /// A link of this name is there, whoever made it.
    pub(crate) fn is_there_already(&self) -> bool {
        let exists = -(nix::errno::Errno::EEXIST as i32);
        matches!(self, Self::Netlink { source: rtnetlink::Error::NetlinkError(said), .. } if said.raw_code() == exists)
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }

    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }
}
