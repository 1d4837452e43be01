//! What a machine has in memory at its start: kernel, initramfs, command line, ACPI tables, and the description of all that by
//! which a kernel is entered in 32-bit mode (PVH).
//!
//! Source: Xen docs/misc/pvh.pandoc, "PVH boot"; xen/include/public/arch-x86/hvm/start_info.h.

pub(crate) mod acpi;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::fs::File;
use std::io;

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader as _, load_cmdline};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, ReadVolatile};

use crate::layout::{
    ACPI, COMMAND_LINE, COMMAND_LINE_BYTES, HIGH_MEMORY, LOW_MEMORY_END, MEMORY_MAP, MODULES, PAGE, START_INFO,
};
use crate::memory::{GuestMemory, parts};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A machine that cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is no ELF file, or does not fit into memory.
    #[error("cannot load the kernel")]
    Kernel(#[source] linux_loader::loader::Error),
    /// It has no PVH entry.
    #[error("the kernel has no PVH entry: it needs CONFIG_PVH")]
    NoEntry,
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs")]
    Initramfs(#[source] io::Error),
    /// Kernel and initramfs together are larger than the memory.
    #[error("kernel and initramfs do not fit into the memory")]
    NoRoom,
    /// The command line is too long, or no plain text.
    #[error("the kernel's command line is unfit")]
    CommandLine,
    /// The tables cannot be written.
    #[error("cannot write what the kernel is told at its start")]
    Tables,
}

/// What boots.
#[derive(Debug)]
pub(crate) struct Images<'a> {
    pub(crate) kernel: &'a mut File,
    pub(crate) initramfs: &'a mut File,
    pub(crate) command_line: &'a str,
}

/// Puts everything into memory and returns the kernel's entry. Its `rbx` is [`START_INFO`].
pub(crate) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    images: &mut Images<'_>,
    hardware: acpi::Hardware,
) -> Result<u64, BootError> {
    let high = Some(GuestAddress(HIGH_MEMORY));
    let kernel = Elf::load(memory, None, images.kernel, high).map_err(BootError::Kernel)?;
    let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap else { return Err(BootError::NoEntry) };
    let (initramfs, length) = load_initramfs(memory, memory_bytes, images.initramfs, kernel.kernel_end)?;
    let mut line = Cmdline::new(COMMAND_LINE_BYTES).map_err(|_| BootError::CommandLine)?;
    line.insert_str(images.command_line).map_err(|_| BootError::CommandLine)?;
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &line).map_err(|_| BootError::CommandLine)?;
    let tables = acpi::tables(ACPI, hardware);
    if tables.bytes.len() as u64 > HIGH_MEMORY - ACPI {
        return Err(BootError::Tables);
    }
    memory.write_slice(&tables.bytes, GuestAddress(ACPI)).map_err(|_| BootError::Tables)?;

    let map = memory_map(memory_bytes);
    let module = hvm_modlist_entry { paddr: initramfs, size: length, ..Default::default() };
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: 1,
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: tables.root,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).map_err(|_| BootError::Tables)?,
        ..Default::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(START_INFO));
    parameters.set_sections(&map, GuestAddress(MEMORY_MAP));
    parameters.set_modules(&[module], GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|_| BootError::Tables)?;
    Ok(entry.0)
}

/// As high as it goes below the hole: the kernel unpacks it downwards of nothing and frees it.
fn load_initramfs(
    memory: &GuestMemory,
    memory_bytes: u64,
    file: &mut File,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let length = file.metadata().map_err(BootError::Initramfs)?.len();
    let (_, low_end, _) = parts(memory_bytes)[0];
    let begin = low_end.checked_sub(length).ok_or(BootError::NoRoom)? / PAGE * PAGE;
    if begin < kernel_end {
        return Err(BootError::NoRoom);
    }
    let mut offset = 0;
    while offset < length {
        let address = GuestAddress(begin + offset);
        let rest = usize::try_from(length - offset).map_err(|_| BootError::NoRoom)?;
        let mut room = memory.get_slice(address, rest).map_err(|_| BootError::NoRoom)?;
        let count = file.read_volatile(&mut room).map_err(|error| BootError::Initramfs(io::Error::other(error)))?;
        if count == 0 {
            return Err(BootError::Initramfs(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        offset += count as u64;
    }
    Ok((begin, length))
}

fn memory_map(memory_bytes: u64) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr: u64, end: u64, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = vec![entry(0, LOW_MEMORY_END, RAM), entry(ACPI, HIGH_MEMORY, RESERVED)];
    for (begin, length, _) in parts(memory_bytes) {
        map.push(entry(begin.max(HIGH_MEMORY), begin + length, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::memory::tests::of;

    #[test]
    fn the_map_has_all_memory_but_the_tables() {
        let map = memory_map(4 << 30);
        let ram: u64 = map.iter().filter(|entry| entry.type_ == RAM).map(|entry| entry.size).sum();
        assert_eq!(ram, (4 << 30) - (HIGH_MEMORY - LOW_MEMORY_END));
        assert!(map.windows(2).all(|pair| pair[0].addr + pair[0].size <= pair[1].addr));
    }

    #[test]
    fn an_initramfs_ends_where_memory_does() {
        let memory = of(16 << 20);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let (begin, length) = load_initramfs(&memory, 16 << 20, &mut file, 1 << 20).unwrap();
        assert_eq!((begin, length), ((16 << 20) - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(begin + 4999)).unwrap(), 7);
        let refused = load_initramfs(&memory, 16 << 20, &mut file, (16 << 20) - 4096);
        assert!(matches!(refused, Err(BootError::NoRoom)));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = of(16 << 20);
        let mut random = tempfile::tempfile().unwrap();
        random.write_all(&[0x5a; 4096]).unwrap();
        let mut initramfs = tempfile::tempfile().unwrap();
        let mut images = Images { kernel: &mut random, initramfs: &mut initramfs, command_line: "quiet" };
        let hardware = acpi::Hardware { processors: 1, devices: 1 };
        assert!(matches!(load(&memory, 16 << 20, &mut images, hardware), Err(BootError::Kernel(_))));
    }
}
