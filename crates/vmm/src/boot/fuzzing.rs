//! Anything at all as a kernel.

use std::io::{Seek as _, Write as _};

use super::{Images, acpi, load};
use crate::fuzz_input::Input;
use crate::memory::GRANULE;
use crate::virtio::fuzzing::{file, memory};

/// Bytes of the guest's memory.
const MEMORY: u64 = 4 * GRANULE;
/// Bytes of the kernel's file before it is changed.
const KERNEL: usize = 512;

/// Loads what is nearly a kernel: an ELF file with four segments, or a bzImage, whose bytes are changed in places.
pub fn loader(data: &[u8]) {
    let mut input = Input(data);
    let packed = input.byte().is_some_and(|byte| byte & 1 == 1);
    let (mut kernel, begin) = if packed { (bzimage(&[0xf4]), 0x1f1) } else { (elf(), 0) };
    for _ in 0..64 {
        let Some(place) = input.byte() else { break };
        // Twice as often in the head and in the descriptions of segments than behind them.
        let place = begin + usize::from(place) * if place & 1 == 0 { 1 } else { 2 };
        let bytes = match input.byte() {
            Some(0..=127) => input.bytes(1),
            Some(128..=191) => input.bytes(4),
            _ => input.bytes(8),
        };
        let end = (place + bytes.len()).min(kernel.len());
        kernel[place..end].copy_from_slice(&bytes[..end - place]);
    }
    let command_line: String = input.bytes(64).iter().map(|&byte| char::from(byte)).collect();
    kernel.extend_from_slice(input.bytes(4096));
    let (mut image, mut initramfs) = (file(0), file(0));
    let written = image.write_all(&kernel).and_then(|()| image.rewind());
    if written.and_then(|()| initramfs.set_len(kernel.len() as u64 % 8192)).is_ok() && initramfs.rewind().is_ok() {
        let mut images = Images { kernel: &mut image, initramfs: &mut initramfs, command_line: &command_line };
        // Refused or loaded: whatever is entered then is the guest.
        let _ = load(&memory(MEMORY), MEMORY, &mut images, acpi::Hardware { processors: 2, devices: 4 });
    }
}

/// A bzImage that does not unpack anything: this code is what is entered, at 1 MiB.
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    // One sector beside the first, loaded high.
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x10_0000_u64.to_le_bytes());
    put(0x260, &0x1_0000_u32.to_le_bytes());
    image.extend_from_slice(code);
    image
}

fn elf() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let mut elf = vec![0; KERNEL];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01");
    put(24, &ENTRY.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 4, 0]);
    let note = [&4_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &18_u32.to_le_bytes(), b"Xen\0", &ENTRY.to_le_bytes()];
    for (number, kind) in (0..4_u8).map(|number| (usize::from(number), if number == 3 { 4 } else { 1 })) {
        let (at, offset, bytes) = (64 + 56 * number, if kind == 4 { 320_u64 } else { 384 }, 24_u64);
        put(at, &[kind]);
        put(at + 8, &offset.to_le_bytes());
        for place in [at + 16, at + 24] {
            put(place, &(ENTRY + 4096 * number as u64).to_le_bytes());
        }
        for place in [at + 32, at + 40] {
            put(place, &bytes.to_le_bytes());
        }
    }
    put(320, &note.concat());
    elf
}
