//! The guest's side of the socket device: its modules and its driver, for a container that asks for it. In every other guest no
//! process can make such a socket, and the device is never spoken to.

use std::path::Path;

use anyhow::Result;

use crate::{devices, early_boot};

/// Where the initramfs has the modules.
const MODULES: &str = "/later";

/// Loads the modules and binds the device. When: any time; again, it does nothing.
///
/// # Errors
/// The machine has no such device, or the kernel no such driver.
pub fn start() -> Result<()> {
    early_boot::load_in_order(Path::new(MODULES), || Ok(()))?;
    devices::bind_socket()
}
