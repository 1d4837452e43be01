//! A compressed kernel, as distributions ship it (bzImage): it unpacks itself.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, "32-bit Boot Protocol"; zero-page.rst.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::KernelLoader as _;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::GuestAddress;

use super::{BootError, Told};
use crate::layout::{COMMAND_LINE, COMMAND_LINE_BYTES, HIGH_MEMORY, ZERO_PAGE};
use crate::memory::GuestMemory;

/// Where every image since protocol 2.00 has these letters.
const SIGNATURE: (u64, &[u8; 4]) = (0x202, b"HdrS");
/// The first protocol that says how much room the unpacked kernel takes (Linux 2.6.31).
const LEAST_VERSION: u16 = 0x020a;
/// A loader that nobody has a number for.
const LOADER: u8 = 0xff;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A kernel in memory, packed.
pub(super) struct Packed {
    header: setup_header,
    /// Where it is entered.
    pub(super) entry: u64,
    /// Where it ends once it has unpacked itself.
    pub(super) end: u64,
    /// The initramfs ends here at the latest.
    pub(super) initramfs_limit: u64,
}

/// True when the file is a compressed kernel.
pub(super) fn is_one(kernel: &File) -> bool {
    let (mut elf, mut found) = ([0; 4], [0; 4]);
    let read = kernel.read_exact_at(&mut elf, 0).and_then(|()| kernel.read_exact_at(&mut found, SIGNATURE.0));
    read.is_ok() && &elf != b"\x7fELF" && &found == SIGNATURE.1
}

/// Puts it into memory.
pub(super) fn load(memory: &GuestMemory, kernel: &mut File) -> Result<Packed, BootError> {
    let loaded = BzImage::load(memory, None, kernel, Some(GuestAddress(HIGH_MEMORY))).map_err(BootError::Kernel)?;
    let header = loaded.setup_header.filter(|header| header.version >= LEAST_VERSION).ok_or(BootError::Old)?;
    let (line, begin) = (header.cmdline_size, header.pref_address.max(loaded.kernel_load.0));
    if (line as usize) < COMMAND_LINE_BYTES - 1 {
        return Err(BootError::CommandLine);
    }
    let end = begin.checked_add(header.init_size.into()).ok_or(BootError::NoRoom)?.max(loaded.kernel_end);
    let initramfs_limit = u64::from(header.initrd_addr_max) + 1;
    Ok(Packed { header, entry: loaded.kernel_load.0, end, initramfs_limit })
}

/// Writes the [`ZERO_PAGE`].
pub(super) fn tell(memory: &GuestMemory, packed: &Packed, told: &Told) -> Result<(), BootError> {
    let word = |value: u64| u32::try_from(value).map_err(|_| BootError::Tables);
    let mut page = boot_params { hdr: packed.header, acpi_rsdp_addr: told.root_table, ..Default::default() };
    page.hdr.type_of_loader = LOADER;
    page.hdr.cmd_line_ptr = word(COMMAND_LINE)?;
    page.hdr.ramdisk_image = word(told.initramfs.0)?;
    page.hdr.ramdisk_size = word(told.initramfs.1)?;
    // Whatever else the file has there is for loaders that pass more.
    page.hdr.setup_data = 0;
    page.e820_entries = u8::try_from(told.map.len()).map_err(|_| BootError::Tables)?;
    let mut table = page.e820_table;
    if told.map.len() > table.len() {
        return Err(BootError::Tables);
    }
    for (entry, range) in table.iter_mut().zip(&told.map) {
        let kind = if range.usable { RAM } else { RESERVED };
        *entry = boot_e820_entry { addr: range.begin, size: range.end - range.begin, r#type: kind };
    }
    page.e820_table = table;
    let parameters = BootParams::new(&page, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&parameters, memory).map_err(|_| BootError::Tables)
}
