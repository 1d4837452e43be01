//! A tiny guest of our own on the host's /dev/kvm. Where there is none, the tests say that they were skipped.

use std::io::{Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::GRANULE;
use crate::virtio::fuzzing::seqpacket;

const COUNTER: u64 = 0x20_0000;
const FLAG: u64 = 0x30_0000;
/// Prints `a`, counts at [`COUNTER`] until [`FLAG`] is set, prints `b`, and resets the machine.
const CODE: [u8; 33] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'a', 0xee, // mov al, 'a'; out dx, al
    0xff, 0x05, 0x00, 0x00, 0x20, 0x00, // inc dword [COUNTER]
    0x83, 0x3d, 0x00, 0x00, 0x30, 0x00, 0x00, // cmp dword [FLAG], 0
    0x74, 0xf1, // je back
    0xb0, b'b', 0xee, // mov al, 'b'; out dx, al
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
    0x90,
];

/// An ELF file with one segment and the note that says where it is entered.
fn kernel() -> File {
    const ENTRY: u64 = 0x10_0000;
    let mut elf = vec![0_u8; 64 + 2 * 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[24..32].copy_from_slice(&ENTRY.to_le_bytes());
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
    elf[56..58].copy_from_slice(&2_u16.to_le_bytes());
    let note = [&4_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &18_u32.to_le_bytes(), b"Xen\0", &ENTRY.to_le_bytes()];
    let note = note.concat();
    let segments = [(1_u32, 176_u64, CODE.len()), (4, 176 + CODE.len() as u64, note.len())];
    for (number, (kind, offset, length)) in segments.into_iter().enumerate() {
        let at = 64 + 56 * number;
        elf[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        elf[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        elf[at + 24..at + 32].copy_from_slice(&ENTRY.to_le_bytes());
        for place in [at + 32, at + 40] {
            elf[place..place + 8].copy_from_slice(&(length as u64).to_le_bytes());
        }
    }
    elf.extend(CODE);
    elf.extend(note);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf).unwrap();
    file
}

fn spec() -> MachineSpec {
    MachineSpec {
        memory_bytes: 16 * GRANULE,
        vcpus: 2,
        disk_slots: 4,
        slots_per_container: 4,
        disk_bytes: 1 << 42,
        network_slots: 2,
    }
}

/// A machine without memory; nothing where there is no KVM.
fn machine(spec: MachineSpec) -> Option<Machine> {
    let kvm = Kvm::new().inspect_err(|error| eprintln!("SKIPPED: /dev/kvm: {error}")).ok()?;
    let ((port, files), (_, host)) = (UnixStream::pair().unwrap(), seqpacket());
    Some(Machine::new(kvm, spec, Behind { port: port.into(), files: files.into(), host }).unwrap())
}

/// A machine that boots in this memory.
fn boot(memory: &File, images: &mut Images<'_>) -> Option<Machine> {
    Some(machine(spec())?.boot(memory.try_clone().unwrap(), images).unwrap())
}

fn fork(spec: MachineSpec, memory: &File, state: File, disks: usize) -> Result<Machine, MachineError> {
    let frozen = Frozen::read(&spec, memory.try_clone().unwrap(), state)?;
    machine(spec).unwrap().fork(frozen, (0..disks).map(|_| None).collect(), DiskRates::default(), &[])
}

fn counter(machine: &Machine) -> u32 {
    machine.memory.read_obj(GuestAddress(COUNTER)).unwrap()
}

fn until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_machine_boots_is_frozen_and_forked() {
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(16 * GRANULE).unwrap();
    let (mut kernel, mut initramfs) = (kernel(), tempfile::tempfile().unwrap());
    let mut images = Images { kernel: &mut kernel, initramfs: &mut initramfs, command_line: "" };
    let Some(template) = boot(&memory, &mut images) else { return };
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(counter(&template), 0, "it begins paused");
    template.resume();
    until(|| counter(&template) > 100);
    let standing = template.stand();
    assert!(
        standing.contains("processor 0 at work at 0x1000") && standing.contains("processor 1 never started"),
        "{standing}"
    );
    template.resume();
    template.pause();
    let stopped = counter(&template);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((counter(&template), template.console()), (stopped, b"a".to_vec()));
    let mut state = tempfile::tempfile().unwrap();
    template.freeze(state.try_clone().unwrap()).unwrap();

    for _ in 0..2 {
        state.rewind().unwrap();
        let fork = fork(spec(), &memory, state.try_clone().unwrap(), 4).unwrap();
        assert_eq!(counter(&fork), stopped);
        fork.resume();
        until(|| counter(&fork) > stopped + 100);
        assert!(fork.end().how().is_none());
        fork.memory.write_obj(1_u32, GuestAddress(FLAG)).unwrap();
        until(|| fork.end().how().is_some());
        assert_eq!((fork.end().how(), fork.console()), (Some(GuestEnd::Reset), b"b".to_vec()));
        fork.pause();
        fork.resume();
        let ended = counter(&fork);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(counter(&fork), ended, "what has ended does not go on");
    }
    let mut count = [0; 4];
    memory.read_exact_at(&mut count, COUNTER).unwrap();
    assert_eq!(u32::from_le_bytes(count), stopped, "forks write nothing into the template's memory");
}

/// Entered as Linux's boot protocol says, with all that it needs to find the rest.
#[test]
fn a_packed_kernel_boots_too() {
    const SEEN: u64 = COUNTER + 8;
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(16 * GRANULE).unwrap();
    // mov [SEEN], esi
    let code = [&[0x89, 0x35, 0x08, 0x00, 0x20, 0x00][..], &CODE].concat();
    let (mut kernel, mut initramfs) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    kernel.write_all(&crate::boot::fuzzing::bzimage(&code)).unwrap();
    initramfs.write_all(b"initramfs").unwrap();
    initramfs.rewind().unwrap();
    let mut images = Images { kernel: &mut kernel, initramfs: &mut initramfs, command_line: "a=b" };
    let Some(machine) = boot(&memory, &mut images) else { return };
    machine.resume();
    until(|| counter(&machine) > 100);
    let word = |place: u64| -> u32 { machine.memory.read_obj(GuestAddress(place)).unwrap() };
    let page: u64 = word(SEEN).into();
    let (line, image, length) = (word(page + 0x228).into(), word(page + 0x218).into(), word(page + 0x21c));
    let (mut said, mut found) = ([0; 4], [0; 9]);
    machine.memory.read_slice(&mut said, GuestAddress(line)).unwrap();
    machine.memory.read_slice(&mut found, GuestAddress(image)).unwrap();
    assert_eq!((&said, &found, length), (b"a=b\0", b"initramfs", 9));
    let mut root = [0; 8];
    machine.memory.read_slice(&mut root, GuestAddress(word(page + 0x70).into())).unwrap();
    let entries: u8 = machine.memory.read_obj(GuestAddress(page + 0x1e8)).unwrap();
    assert_eq!((&root, entries), (b"RSD PTR ", 3));
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(16 * GRANULE).unwrap();
    let (mut kernel, mut initramfs) = (kernel(), tempfile::tempfile().unwrap());
    let mut images = Images { kernel: &mut kernel, initramfs: &mut initramfs, command_line: "" };
    let Some(template) = boot(&memory, &mut images) else { return };
    let mut state = tempfile::tempfile().unwrap();
    template.freeze(state.try_clone().unwrap()).unwrap();
    let mut fork = |change: fn(&mut MachineSpec), disks: usize| {
        state.rewind().unwrap();
        let mut other = spec();
        change(&mut other);
        fork(other, &memory, state.try_clone().unwrap(), disks).err()
    };
    assert!(matches!(fork(|spec| spec.vcpus = 1, 4), Some(MachineError::State(_))));
    assert!(matches!(fork(|spec| spec.network_slots = 1, 4), Some(MachineError::State(_))));
    assert!(matches!(fork(|_| {}, 3), Some(MachineError::Size { .. })));
    assert!(fork(|_| {}, 4).is_none());
}

/// What KVM does not take is refused, whatever else the file says.
#[test]
fn f108_registers_that_cannot_be_are_refused() {
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(16 * GRANULE).unwrap();
    let (mut kernel, mut initramfs) = (kernel(), tempfile::tempfile().unwrap());
    let mut images = Images { kernel: &mut kernel, initramfs: &mut initramfs, command_line: "" };
    let frozen = tempfile::tempfile().unwrap();
    let Some(template) = boot(&memory, &mut images) else { return };
    template.freeze(frozen.try_clone().unwrap()).unwrap();
    let changed = |change: fn(&mut ProcessorState)| {
        (&frozen).rewind().unwrap();
        let mut state: MachineState = state::read(frozen.try_clone().unwrap()).unwrap();
        change(&mut state.processors[1]);
        let mut file = tempfile::tempfile().unwrap();
        state::write(&state, file.try_clone().unwrap()).unwrap();
        file.rewind().unwrap();
        fork(spec(), &memory, file, 4).err()
    };
    assert!(changed(|_| {}).is_none());
    let unknown = changed(|processor| processor.msrs[3].index = 0xdead_0000);
    let register = ProcessorError::Register(0xdead_0000);
    assert_eq!(unknown.map(|error| error.to_string()), Some(register.to_string()));
    // EFER with bits that no processor has; paging without protection.
    let efer = changed(|processor| processor.sregs.efer = u64::MAX);
    assert!(matches!(efer, Some(MachineError::Processor(ProcessorError::Kvm { .. }))), "{efer:?}");
    let paging = changed(|processor| processor.sregs.cr0 = 1 << 31);
    assert!(matches!(paging, Some(MachineError::Processor(ProcessorError::Kvm { .. }))), "{paging:?}");
}
