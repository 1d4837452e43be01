//! Where things are in the guest's physical address space. A template depends on all of it.
//!
//! ```text
//! 0          0x7000..  start info or zero page, memory map, modules, command line (read by the kernel at its start)
//! 0xe_0000             ACPI tables
//! 0x10_0000            the kernel; the initramfs ends where the lower memory ends
//! 0xc000_0000          3 GiB: the hole begins
//! 0xd000_0000          virtio devices, a page each
//! 0xfec0_0000          I/O APIC; 0xfee0_0000 local APICs; 0xfffb_c000 KVM's own pages
//! 0x1_0000_0000        4 GiB: the rest of the memory
//! ```

/// The page of a device's registers.
pub(crate) const PAGE: u64 = 4096;
/// Lower memory ends here at the latest.
pub(crate) const HOLE_BEGIN: u64 = 3 << 30;
/// Upper memory begins here.
pub(crate) const HOLE_END: u64 = 4 << 30;

/// What the kernel is told at its start. Source: xen/include/public/arch-x86/hvm/start_info.h.
pub(crate) const START_INFO: u64 = 0x7000;
/// What a bzImage is told in its place, a page. Source: Linux Documentation/arch/x86/zero-page.rst.
pub(crate) const ZERO_PAGE: u64 = START_INFO;
/// The memory map that the start info points to.
pub(crate) const MEMORY_MAP: u64 = 0x7100;
/// The description of the initramfs.
pub(crate) const MODULES: u64 = 0x7800;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x8000;
/// The longest command line, with its zero. Source: Linux arch/x86/include/asm/setup.h `COMMAND_LINE_SIZE`.
pub(crate) const COMMAND_LINE_BYTES: usize = 2048;
/// Memory that is usable from 0 on.
pub(crate) const LOW_MEMORY_END: u64 = 0xa_0000;
/// Where the ACPI tables begin.
pub(crate) const ACPI: u64 = 0xe_0000;
/// Where they end at the latest, and memory goes on.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// The first device's page.
pub(crate) const VIRTIO: u64 = 0xd000_0000;
/// The first device's interrupt: input of the I/O APIC that no ISA device has.
pub(crate) const VIRTIO_GSI: u32 = 16;
/// Inputs of KVM's I/O APIC.
pub(crate) const GSIS: u32 = 24;
/// Interrupts for devices beyond those above, lowest last: nothing else has them.
pub(crate) const MORE_GSIS: [u32; 11] = [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5];

/// KVM's I/O APIC.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// Each processor's own controller.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors, behind its identity map. Source: KVM api.rst, KVM_SET_TSS_ADDR.
pub(crate) const TSS: usize = 0xfffb_d000;

/// The serial port, COM1.
pub(crate) const SERIAL: u16 = 0x3f8;
/// Its interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// Registers of the keyboard controller, which can reset a PC.
pub(crate) const KEYBOARD_STATUS: u16 = 0x64;
/// ACPI's sleep control and sleep status registers.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// See above.
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// The sleep type that `_S5` names, "off".
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

/// The interrupt of a device by its number, as long as there are any.
pub(crate) fn virtio_gsi(number: usize) -> Option<u32> {
    let extra = usize::try_from(GSIS - VIRTIO_GSI).ok()?;
    if number < extra {
        return Some(VIRTIO_GSI + u32::try_from(number).ok()?);
    }
    MORE_GSIS.get(number - extra).copied()
}

/// The page of a device by its number.
pub(crate) fn virtio_page(number: usize) -> u64 {
    VIRTIO + PAGE * number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_an_interrupt_of_its_own() {
        let given: Vec<u32> = (0..).map_while(virtio_gsi).collect();
        let distinct: std::collections::BTreeSet<_> = given.iter().collect();
        assert_eq!((given.len(), distinct.len()), (19, 19));
        assert!(given.iter().all(|&gsi| gsi < GSIS && gsi != SERIAL_GSI));
    }
}
