//! Utility VMs: machines with a kernel of their own, one per container, that are not booted but *forked*, copy on
//! write, from a [template](TemplateStore) that was booted once and frozen before anything specific to a container.
//!
//! It knows no image, no container and no network: paths of disks come in, a connection to the guest compute service and a
//! tap for each network slot go out.
//!
//! ```text
//!  UtilityVm::start
//!    backend   choose the hypervisor (probe /dev/kvm, find QEMU)
//!    key       digest of every input -> template id
//!    builder   find it in the store, or: boot -> READY -> freeze -> seal
//!    qemu, kvm fork: same machine, template's memory mapped private, other disks behind its slots
//!    personalize   entropy, clock, identity; anything but the right answer in time destroys the fork
//! ```
//!
//! Read first: [`UtilityVm`], [`Hypervisor`] and [`VirtualMachine`], [`TemplateStore`], [`GuestConnection`],
//! [`MachineConfig`].
#![deny(unsafe_code)]

mod backend;
mod builder;
mod cgroup;
mod connection;
mod console_text;
mod counter;
mod digest;
mod disk;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod guest_image;
mod host_sockets;
mod hypervisor;
mod key;
mod kvm;
mod kvm_probe;
mod machine;
mod network_slots;
mod personalize;
mod prepared;
mod probe;
mod process;
mod qemu;
mod qmp;
mod record;
mod slots;
mod spawn;
mod store;
mod sys;
mod template;
mod utility_vm;
mod working_set;

pub use cgroup::join_cgroup;
pub use connection::{GuestConnection, GuestError, GuestStream};
pub use disk::{DiskBinding, DiskError};
pub use error::UvmError;
pub use guest_image::{GuestImage, GuestImageError};
pub use host_sockets::HostSockets;
pub use hypervisor::{
    ExitReason, FrozenMachine, Hypervisor, HypervisorError, SlotBinding, SlotBindings, VirtualMachine, VmExit,
};
pub use key::{BackendIdentity, TemplateKey};
pub use machine::{DISK_SLOTS, MachineConfig, MachineConfigError, NOMINAL_DISK_BYTES, POD_CONTAINERS};
pub use network_slots::{NetworkSlots, NetworkSlotsError};
pub use personalize::PersonalizeError;
pub use prepared::WaitingVmm;
pub use probe::probe;
pub use qemu::Qemu;
pub use qmp::QmpError;
pub use store::{TemplateError, TemplateStore};
pub use utility_vm::{PodDisks, StartRequest, UtilityVm};
