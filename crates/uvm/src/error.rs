//! What goes wrong with a utility VM.

use proto::ErrorKind;

use crate::connection::GuestError;
use crate::guest_image::GuestImageError;
use crate::hypervisor::HypervisorError;
use crate::machine::MachineConfigError;
use crate::personalize::PersonalizeError;
use crate::store::TemplateError;

/// Why a utility VM did not start, or failed later. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub enum UvmError {
    /// The guest image is missing or unfit.
    #[error(transparent)]
    Image(#[from] GuestImageError),
    /// The request asks for a size that there is not.
    #[error(transparent)]
    Size(#[from] MachineConfigError),
    /// The request itself is wrong.
    #[error("{0}")]
    Request(String),
    /// A security boundary was asked for, and there is none to be had.
    #[error(
        "a security boundary is required, but utility VMs on this host have none (software emulation): \
         use a host with hardware virtualization, or drop boundary=required"
    )]
    NoBoundary,
    /// There is no template and none could be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The guest could not be spoken to.
    #[error("the utility VM was destroyed")]
    Guest(#[source] GuestError),
    /// The guest did not become what it was told to be.
    #[error(transparent)]
    Personalize(#[from] PersonalizeError),
    /// The machine ended while it was started.
    #[error("the utility VM ended while it was started: {0}")]
    Ended(String),
    /// The utility VM that stands by is another one than asked for.
    #[error("the utility VM that stands by is of another size or from another template")]
    Unfit,
}

impl UvmError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Image(image) => image.kind(),
            Self::Size(size) => size.kind(),
            Self::Request(_) => ErrorKind::InvalidArgument,
            Self::NoBoundary | Self::Unfit => ErrorKind::FailedPrecondition,
            Self::Template(template) => template.kind(),
            Self::Hypervisor(hypervisor) => hypervisor.kind(),
            Self::Guest(guest) => guest.kind(),
            Self::Personalize(personalize) => personalize.kind(),
            Self::Ended(_) => ErrorKind::Unavailable,
        }
    }
}
