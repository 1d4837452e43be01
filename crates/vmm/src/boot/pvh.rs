//! An uncompressed kernel: an ELF file that says itself where it is entered in 32-bit mode (PVH).
//!
//! Source: Xen docs/misc/pvh.pandoc, "PVH boot"; xen/include/public/arch-x86/hvm/start_info.h.

use std::fs::File;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::KernelLoader as _;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::GuestAddress;

use super::{BootError, Told};
use crate::layout::{COMMAND_LINE, HIGH_MEMORY, MEMORY_MAP, MODULES, START_INFO};
use crate::memory::GuestMemory;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Where the kernel is entered, and where it ends.
pub(super) fn load(memory: &GuestMemory, kernel: &mut File) -> Result<(u64, u64), BootError> {
    let loaded = Elf::load(memory, None, kernel, Some(GuestAddress(HIGH_MEMORY))).map_err(BootError::Kernel)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else { return Err(BootError::NoEntry) };
    Ok((entry.0, loaded.kernel_end))
}

/// Writes [`START_INFO`] and what it points to.
pub(super) fn tell(memory: &GuestMemory, told: &Told) -> Result<(), BootError> {
    let entry = |range: &super::Range| hvm_memmap_table_entry {
        addr: range.begin,
        size: range.end - range.begin,
        type_: if range.usable { RAM } else { RESERVED },
        reserved: 0,
    };
    let map: Vec<_> = told.map.iter().map(entry).collect();
    let (paddr, size) = told.initramfs;
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: 1,
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: told.root_table,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).map_err(|_| BootError::Tables)?,
        ..Default::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(START_INFO));
    parameters.set_sections(&map, GuestAddress(MEMORY_MAP));
    parameters.set_modules(&[hvm_modlist_entry { paddr, size, ..Default::default() }], GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|_| BootError::Tables)
}
