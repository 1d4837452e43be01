//! What a machine has in memory at its start: kernel, initramfs, command line, ACPI tables, and the description of all that by
//! which a kernel is entered in 32-bit mode: PVH's for an uncompressed kernel, Linux's own for a bzImage.

pub(crate) mod acpi;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod linux;
mod pvh;

use std::fs::File;
use std::io;

use linux_loader::cmdline::Cmdline;
use linux_loader::loader::load_cmdline;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, ReadVolatile};

use crate::layout::{ACPI, COMMAND_LINE, COMMAND_LINE_BYTES, HIGH_MEMORY, LOW_MEMORY_END, PAGE};
use crate::memory::{GuestMemory, parts};

/// A machine that cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is no ELF file and no bzImage, or does not fit into memory.
    #[error("cannot load the kernel")]
    Kernel(#[source] linux_loader::loader::Error),
    /// It has no PVH entry.
    #[error("the kernel has no PVH entry: it needs CONFIG_PVH")]
    NoEntry,
    /// It is a bzImage from before Linux 2.6.31.
    #[error("the kernel's boot protocol is too old")]
    Old,
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

/// How the first processor enters the kernel, in 32-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// At this address, as PVH says.
    Pvh(u64),
    /// At this address, as Linux's boot protocol says.
    Linux(u64),
}

/// A part of the guest's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    begin: u64,
    end: u64,
    /// It is memory for the kernel to use.
    usable: bool,
}

/// What a kernel is told, beside its command line.
struct Told {
    /// Begin and length.
    initramfs: (u64, u64),
    /// ACPI's root.
    root_table: u64,
    map: Vec<Range>,
}

/// Puts everything into memory and says how the kernel is entered.
pub(crate) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    images: &mut Images<'_>,
    hardware: acpi::Hardware,
) -> Result<Entry, BootError> {
    if linux::is_one(images.kernel) {
        let packed = linux::load(memory, images.kernel)?;
        let room = (packed.end, packed.initramfs_limit);
        linux::tell(memory, &packed, &load_others(memory, memory_bytes, images, hardware, room)?)?;
        return Ok(Entry::Linux(packed.entry));
    }
    let (entry, end) = pvh::load(memory, images.kernel)?;
    pvh::tell(memory, &load_others(memory, memory_bytes, images, hardware, (end, u64::MAX))?)?;
    Ok(Entry::Pvh(entry))
}

/// Puts everything but the kernel into memory. Shape: `room` is where the initramfs may begin and has to end.
fn load_others(
    memory: &GuestMemory,
    memory_bytes: u64,
    images: &mut Images<'_>,
    hardware: acpi::Hardware,
    room: (u64, u64),
) -> Result<Told, BootError> {
    let initramfs = load_initramfs(memory, memory_bytes, images.initramfs, room)?;
    let mut line = Cmdline::new(COMMAND_LINE_BYTES).map_err(|_| BootError::CommandLine)?;
    line.insert_str(images.command_line).map_err(|_| BootError::CommandLine)?;
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &line).map_err(|_| BootError::CommandLine)?;
    let tables = acpi::tables(ACPI, hardware);
    if tables.bytes.len() as u64 > HIGH_MEMORY - ACPI {
        return Err(BootError::Tables);
    }
    memory.write_slice(&tables.bytes, GuestAddress(ACPI)).map_err(|_| BootError::Tables)?;
    Ok(Told { initramfs, root_table: tables.root, map: memory_map(memory_bytes) })
}

/// As high as it goes below the hole: the kernel unpacks it downwards of nothing and frees it.
fn load_initramfs(
    memory: &GuestMemory,
    memory_bytes: u64,
    file: &mut File,
    (kernel_end, limit): (u64, u64),
) -> Result<(u64, u64), BootError> {
    let length = file.metadata().map_err(BootError::Initramfs)?.len();
    let (_, low_end, _) = parts(memory_bytes)[0];
    let begin = low_end.min(limit).checked_sub(length).ok_or(BootError::NoRoom)? / PAGE * PAGE;
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

fn memory_map(memory_bytes: u64) -> Vec<Range> {
    let range = |begin: u64, end: u64, usable| Range { begin, end, usable };
    let mut map = vec![range(0, LOW_MEMORY_END, true), range(ACPI, HIGH_MEMORY, false)];
    for (begin, length, _) in parts(memory_bytes) {
        map.push(range(begin.max(HIGH_MEMORY), begin + length, true));
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
        let ram: u64 = map.iter().filter(|range| range.usable).map(|range| range.end - range.begin).sum();
        assert_eq!(ram, (4 << 30) - (HIGH_MEMORY - LOW_MEMORY_END));
        assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].begin));
    }

    #[test]
    fn an_initramfs_ends_where_memory_does() {
        let memory = of(16 << 20);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let (begin, length) = load_initramfs(&memory, 16 << 20, &mut file, (1 << 20, u64::MAX)).unwrap();
        assert_eq!((begin, length), ((16 << 20) - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(begin + 4999)).unwrap(), 7);
        let refused = load_initramfs(&memory, 16 << 20, &mut file, ((16 << 20) - 4096, u64::MAX));
        assert!(matches!(refused, Err(BootError::NoRoom)));
        std::io::Seek::rewind(&mut file).unwrap();
        let below = load_initramfs(&memory, 16 << 20, &mut file, (1 << 20, 8 << 20)).unwrap();
        assert_eq!(below, ((8 << 20) - 8192, 5000), "a kernel may want it lower");
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

    #[test]
    fn a_packed_kernel_that_cannot_be_is_refused() {
        let memory = of(16 << 20);
        let load = |place: usize, bytes: &[u8]| {
            let mut image = fuzzing::bzimage(&[0xf4]);
            image[place..place + bytes.len()].copy_from_slice(bytes);
            let (mut kernel, mut initramfs) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            kernel.write_all(&image).unwrap();
            let mut images = Images { kernel: &mut kernel, initramfs: &mut initramfs, command_line: "quiet" };
            load(&memory, 16 << 20, &mut images, acpi::Hardware { processors: 1, devices: 1 })
        };
        assert_eq!(load(0, &[0]).unwrap(), Entry::Linux(0x10_0000));
        // An old protocol; not loaded high; room for a short command line only.
        assert!(matches!(load(0x206, &[9, 2]), Err(BootError::Old)));
        assert!(matches!(load(0x211, &[0]), Err(BootError::Kernel(_))));
        assert!(matches!(load(0x238, &[255, 0, 0, 0]), Err(BootError::CommandLine)));
        // It begins among the tables, beyond the memory; it unpacks itself beyond it, or beyond all.
        assert!(matches!(load(0x214, &0xf_0000_u32.to_le_bytes()), Err(BootError::Kernel(_))));
        assert!(matches!(load(0x214, &0x100_0000_u32.to_le_bytes()), Err(BootError::Kernel(_))));
        assert!(matches!(load(0x260, &0x100_0000_u32.to_le_bytes()), Err(BootError::NoRoom)));
        assert!(matches!(load(0x258, &u64::MAX.to_le_bytes()), Err(BootError::NoRoom)));
        // More sectors than there are.
        assert!(matches!(load(0x1f1, &[9]), Err(BootError::Kernel(_))));
    }
}
