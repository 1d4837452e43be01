//! Who answers which address. What nobody has reads as ones and takes every write.

use std::sync::Arc;

use crate::layout::{PAGE, VIRTIO};
use crate::ports::Ports;
use crate::virtio::device::VirtioDevice;
use crate::virtio::transport::Transport;

/// A device's page of registers.
pub(crate) trait Registers: Send + Sync {
    /// A processor reads.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// A processor writes.
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: VirtioDevice> Registers for Transport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        Self::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        Self::write(self, offset, data);
    }
}

/// All that processors reach beside memory.
pub(crate) struct Bus {
    /// Ports.
    pub(crate) ports: Ports,
    pages: Vec<Arc<dyn Registers>>,
}

impl Bus {
    /// A bus with these devices, page by page.
    pub(crate) fn new(ports: Ports, pages: Vec<Arc<dyn Registers>>) -> Self {
        Self { ports, pages }
    }

    /// A processor reads where there is no memory.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.page(address) {
            Some((page, offset)) => page.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A processor writes where there is no memory.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((page, offset)) = self.page(address) {
            page.write(offset, data);
        }
    }

    fn page(&self, address: u64) -> Option<(&dyn Registers, u64)> {
        let offset = address.checked_sub(VIRTIO)?;
        let page = self.pages.get(usize::try_from(offset / PAGE).ok()?)?;
        Some((page.as_ref(), offset % PAGE))
    }
}
