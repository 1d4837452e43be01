//! ACPI tables, no more than Linux needs: processors, the I/O APIC, the virtio devices, the serial port, "off" and "reset". The
//! machine is of the reduced kind: no legacy timer, no legacy interrupt controller is looked for.
//!
//! Source: ACPI 6.5 §5.2 (tables), §19 (ASL); "LNRO0005" is Linux's name for virtio over MMIO.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use crate::layout::{
    IO_APIC, LOCAL_APIC, PAGE, SERIAL, SERIAL_GSI, SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_OFF, virtio_gsi, virtio_page,
};

const OEM: [u8; 6] = *b"BLKHED";
const TABLE: [u8; 8] = *b"BULKHEAD";
const REVISION: u32 = 1;
/// Neither a display, nor a clock in CMOS, nor a keyboard controller. Source: ACPI 6.5 §5.2.9.3.
const NO_VGA_NO_CMOS_CLOCK: u16 = 1 << 2 | 1 << 5;
/// The register by which a machine is reset, and its value. See `ports.rs`.
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 6;

/// What the tables are about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hardware {
    /// Number of processors.
    pub(crate) processors: u8,
    /// Number of virtio devices, from the first page on.
    pub(crate) devices: usize,
}

/// The tables as bytes, and the address of their root.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) bytes: Vec<u8>,
    pub(crate) root: u64,
}

/// Makes the tables for the address `begin`.
pub(crate) fn tables(begin: u64, hardware: Hardware) -> Tables {
    let mut tables = Tables { bytes: Vec::new(), root: 0 };
    let mut put = |table: &[u8]| {
        let address = begin + tables.bytes.len() as u64;
        tables.bytes.extend_from_slice(table);
        tables.bytes.resize(tables.bytes.len().next_multiple_of(16), 0);
        address
    };
    let dsdt = put(dsdt(hardware.devices).as_slice());
    let fadt = put(&bytes(&fadt(dsdt)));
    let madt = put(&bytes(&madt(hardware.processors)));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes(&xsdt));
    tables.root = put(&bytes(&Rsdp::new(OEM, xsdt)));
    tables
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |address| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address);
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS_CLOCK.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(u64::from(SLEEP_CONTROL));
    fadt.sleep_status_reg = port(u64::from(SLEEP_STATUS));
    fadt.finalize()
}

fn madt(processors: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..processors {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(devices: usize) -> Sdt {
    let mut code = Vec::new();
    let numbers = (0..devices).filter_map(|number| Some((number, virtio_gsi(number)?)));
    for (number, gsi) in numbers {
        virtio_device(number, gsi, &mut code);
    }
    serial_port(&mut code);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml::Scope::raw("_SB_".into(), code));
    let zero = 0_u8;
    let sleep_type = SLEEP_TYPE_OFF;
    let off = aml::Package::new(vec![&sleep_type, &zero, &zero, &zero]);
    dsdt.append_slice(&bytes(&aml::Name::new("_S5_".into(), &off)));
    dsdt.update_checksum();
    dsdt
}

fn virtio_device(number: usize, gsi: u32, code: &mut Vec<u8>) {
    let page = u32::try_from(virtio_page(number)).unwrap_or(u32::MAX);
    let size = u32::try_from(PAGE).unwrap_or(u32::MAX);
    let registers = aml::Memory32Fixed::new(true, page, size);
    let interrupt = aml::Interrupt::new(true, true, false, false, gsi);
    let hid = aml::Name::new("_HID".into(), &"LNRO0005");
    let uid = aml::Name::new("_UID".into(), &number);
    let template = aml::ResourceTemplate::new(vec![&registers, &interrupt]);
    let resources = aml::Name::new("_CRS".into(), &template);
    let name = format!("V{number:03}");
    aml::Device::new(name.as_str().into(), vec![&hid, &uid, &resources]).to_aml_bytes(code);
}

fn serial_port(code: &mut Vec<u8>) {
    let ports = aml::IO::new(SERIAL, SERIAL, 1, 8);
    let interrupt = aml::Interrupt::new(true, true, false, false, SERIAL_GSI);
    let hid = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501"));
    let number = 0_u8;
    let uid = aml::Name::new("_UID".into(), &number);
    let template = aml::ResourceTemplate::new(vec![&ports, &interrupt]);
    let resources = aml::Name::new("_CRS".into(), &template);
    aml::Device::new("COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    #[test]
    fn every_table_is_whole_and_reached_from_the_root() {
        let tables = tables(0xe_0000, Hardware { processors: 32, devices: 19 });
        let at = |address: u64| &tables.bytes[usize::try_from(address - 0xe_0000).unwrap()..];
        let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        let whole = |table: &[u8]| sum(&table[..u32_at(table, 4)]) == 0;

        let root = at(tables.root);
        assert_eq!((&root[..8], sum(&root[..20]), sum(&root[..36])), (&b"RSD PTR "[..], 0, 0));
        let xsdt = at(u64_at(root, 24));
        assert!(xsdt.starts_with(b"XSDT") && whole(xsdt) && u32_at(xsdt, 4) == 36 + 16);
        let (fadt, madt) = (at(u64_at(xsdt, 36)), at(u64_at(xsdt, 44)));
        assert!(fadt.starts_with(b"FACP") && whole(fadt));
        assert!(madt.starts_with(b"APIC") && whole(madt));
        assert_eq!(u32_at(madt, 4), 44 + 32 * 8 + 12);
        let dsdt = at(u64_at(fadt, 140));
        assert!(dsdt.starts_with(b"DSDT") && whole(dsdt));
        let found = |word: &[u8]| dsdt.windows(word.len()).filter(|&found| found == word).count();
        assert_eq!((found(b"LNRO0005"), found(b"V018"), found(b"COM1"), found(b"_S5_")), (19, 1, 1, 1));
        assert!(tables.bytes.len() < 0x2_0000);
    }
}
