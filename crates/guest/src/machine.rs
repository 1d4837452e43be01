//! What the freeze point leaves for a fork: the machine's parts that wait for a container.

use container::{Helper, HelperError};

use crate::devices::Slots;

/// A machine that has no container yet.
pub struct Machine {
    /// The disk slots, bound.
    pub slots: Slots,
    /// Waits to create the container.
    pub create_helper: Helper,
    /// Waits to start a further process in it.
    pub exec_helper: Helper,
}

impl Machine {
    /// Starts the helpers and waits until they wait: what is left of their start would be a container's.
    ///
    /// # Errors
    /// When the guest has no room for them.
    pub fn new(slots: Slots) -> Result<Self, HelperError> {
        let machine = Self { slots, create_helper: Helper::spawn()?, exec_helper: Helper::spawn()? };
        machine.create_helper.await_ready();
        machine.exec_helper.await_ready();
        Ok(machine)
    }
}
