//! The cases of the security reference that are about a whole machine: F98, and F101 to F109. Most need no KVM: what is refused is
//! refused before it is asked.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::layout::{IO_APIC, PAGE, SERIAL, virtio_page};
use crate::memory::GRANULE;
use crate::ports::PortsState;
use crate::processor::registers::ProcessorState;
use crate::sys;
use crate::virtio::fuzzing::seqpacket;
use crate::virtio::testing::Random;

const MEMORY: u64 = 4 * GRANULE;

fn spec() -> MachineSpec {
    MachineSpec {
        memory_bytes: MEMORY,
        vcpus: 2,
        disk_slots: 4,
        slots_per_container: 4,
        disk_bytes: 1 << 40,
        network_slots: 2,
    }
}

fn behind() -> Behind {
    let ((port, files), (_, host)) = (UnixStream::pair().unwrap(), seqpacket());
    Behind { port: port.into(), files: files.into(), host }
}

fn devices(spec: &MachineSpec) -> Devices {
    Devices::new(spec, &memory::tests::of(MEMORY), behind()).unwrap()
}

/// A state as a machine of this size writes it, without anything in its processors.
fn frozen(spec: &MachineSpec) -> MachineState {
    let mut controllers = [kvm_irqchip::default(); 3];
    for (controller, chip_id) in controllers.iter_mut().zip(CONTROLLERS) {
        controller.chip_id = chip_id;
    }
    MachineState {
        spec: spec.clone(),
        clock: kvm_clock_data::default(),
        controllers,
        processors: (0..spec.vcpus).map(|_| ProcessorState::default()).collect(),
        ports: PortsState::default(),
        devices: devices(spec).save(),
    }
}

fn written(state: &MachineState) -> File {
    let mut file = tempfile::tempfile().unwrap();
    state::write(state, file.try_clone().unwrap()).unwrap();
    file.rewind().unwrap();
    file
}

/// A fork on something that is no KVM, so that getting as far as that is an error of its own.
fn fork(asked: MachineSpec, memory: File, state: File, disks: usize) -> MachineError {
    let kvm = sys::kvm(OwnedFd::from(File::open("/dev/null").unwrap()));
    let made = Frozen::read(&asked, memory, state).and_then(|frozen| {
        let disks = (0..disks).map(|_| None).collect();
        Machine::new(kvm, asked, behind())?.fork(frozen, disks, DiskRates::default(), &[])
    });
    match made {
        Err(error) => error,
        Ok(_) => panic!("a machine without KVM"),
    }
}

fn memory_file(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

#[test]
fn f98_addresses_that_nobody_has() {
    let devices = devices(&spec());
    let bus = Bus::new(Ports::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()), devices.pages());
    let end = virtio_page(devices.count());
    for address in [0, virtio_page(0) - 1, virtio_page(0) - 8, end, end + PAGE, IO_APIC.into(), 1 << 52, u64::MAX] {
        for width in [0, 1, 2, 4, 8, 16] {
            let mut data = vec![0; width];
            bus.read(address, &mut data);
            assert!(data.iter().all(|&byte| byte == 0xff), "{address:#x}");
            bus.write(address, &vec![0x5a; width]);
        }
    }
    // Across the end of a page, and in every page.
    for number in 0..devices.count() {
        bus.write(virtio_page(number) + PAGE - 2, &[0x5a; 8]);
        let mut magic = [0; 4];
        bus.read(virtio_page(number), &mut magic);
        assert_eq!(&magic, b"virt");
    }
    for port in 0..=u16::MAX {
        if !(SERIAL..SERIAL + 8).contains(&port) {
            bus.ports.read(port, &mut [0; 8]);
        }
    }
    assert!(bus.ports.console().bytes().is_empty());
}

#[test]
fn f101_a_state_cut_anywhere_is_refused() {
    let bytes = {
        let mut file = written(&frozen(&spec()));
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        bytes
    };
    assert!(state::decode::<MachineState>(&bytes).is_ok());
    // The header counts, so each of these is found without reading on.
    for length in 0..bytes.len() {
        assert!(state::decode::<MachineState>(&bytes[..length]).is_err(), "{length}");
    }
    // Cut, and the header with it.
    let mut cut = bytes.clone();
    for length in (16..bytes.len()).step_by(97) {
        cut.truncate(16);
        cut.extend_from_slice(&bytes[16..length]);
        cut[12..16].copy_from_slice(&u32::try_from(length - 16).unwrap().to_le_bytes());
        assert!(state::decode::<MachineState>(&cut).is_err(), "{length}");
    }
}

/// Bits flipped anywhere: it is no state, or one that the devices take or refuse. What a flip changes in a register is for the
/// template store to find, which compares digests.
#[test]
fn f101_flipped_bits_do_no_harm() {
    let spec = MachineSpec { vcpus: 1, ..spec() };
    let mut state = frozen(&spec);
    // Registers are of no interest here and take most of the room.
    state.processors.clear();
    let mut file = written(&state);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    let mut random = Random(3);
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..800 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            // Most of them in the devices' part, which is the last.
            let place = bytes.len() - 1 - usize::try_from(random.below(bytes.len().min(400) as u64)).unwrap();
            damaged[place] ^= 1 << random.below(8);
        }
        let state = state::decode::<MachineState>(&damaged).ok();
        match state.is_some_and(|state| devices(&spec).restore(state.devices).is_ok()) {
            true => taken += 1,
            false => refused += 1,
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} {taken}");
}

#[test]
fn f103_a_state_or_a_request_of_an_impossible_size_is_refused() {
    for count in [0, 65, 1 << 16, u32::MAX] {
        let asked = MachineSpec { vcpus: count, ..spec() };
        let mut state = frozen(&spec());
        state.spec = asked.clone();
        let error = fork(asked, memory_file(MEMORY), written(&state), 4);
        assert!(matches!(error, MachineError::Size { what: "processors", .. }), "{count}: {error}");
    }
    for (disk_slots, network_slots) in [(18, 0), (0, 18), (9, 9), (u32::MAX, u32::MAX), (u32::MAX, 1)] {
        let asked = MachineSpec { disk_slots, network_slots, ..spec() };
        let made = Devices::new(&asked, &memory::tests::of(MEMORY), behind());
        assert!(matches!(made, Err(MachineError::Size { what: "devices", .. })), "{disk_slots} {network_slots}");
    }
    for memory_bytes in [0, 1, GRANULE + 1, u64::MAX, u64::MAX / GRANULE * GRANULE] {
        let asked = MachineSpec { memory_bytes, ..spec() };
        let mut state = frozen(&spec());
        state.spec = asked.clone();
        let error = fork(asked, memory_file(MEMORY), written(&state), 4);
        assert!(matches!(error, MachineError::Memory(_)), "{memory_bytes:#x}: {error}");
    }
}

#[test]
fn each_containers_first_slot_can_be_written_and_each_slot_is_bound_by_itself() {
    let pod = devices(&MachineSpec { disk_slots: 12, slots_per_container: 2, ..spec() });
    let disk = |read_only| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        Some(Disk::new(vec![(file, 4096)], read_only).unwrap())
    };
    for slot in 0..12 {
        assert_eq!(pod.bind_slot(slot, disk(false)).is_ok(), slot % 2 == 0, "slot {slot}");
        pod.bind_slot(slot, disk(true)).unwrap();
        pod.bind_slot(slot, None).unwrap();
    }
    assert!(matches!(pod.bind_slot(12, None), Err(MachineError::Size { .. })));
    let long = MachineSpec { disk_bytes: 512, ..spec() };
    assert!(matches!(devices(&long).bind_slot(0, disk(true)), Err(MachineError::Disk { slot: 0, .. })));
}

#[test]
fn f104_memory_of_another_length_is_refused() {
    for bytes in [0, GRANULE, MEMORY - 1, MEMORY + 1, 2 * MEMORY] {
        let error = fork(spec(), memory_file(bytes), written(&frozen(&spec())), 4);
        assert!(matches!(error, MachineError::Memory(MemoryError::Size { .. })), "{bytes:#x}: {error}");
    }
    // A sparse file of the right length is what a template is: it fails only where KVM would be.
    let error = fork(spec(), memory_file(MEMORY), written(&frozen(&spec())), 4);
    assert!(matches!(error, MachineError::Kvm { .. }), "{error}");
}

#[test]
fn f106_what_is_no_file_is_refused() {
    let folder = || File::open("/").unwrap();
    let pipe = || File::from(OwnedFd::from(std::io::pipe().unwrap().0));
    let zeroes = || File::open("/dev/zero").unwrap();
    for other in [folder(), pipe(), zeroes()] {
        let error = fork(spec(), other, written(&frozen(&spec())), 4);
        assert!(matches!(error, MachineError::Memory(MemoryError::NoFile)), "{error}");
    }
    for other in [folder(), pipe(), zeroes()] {
        let error = fork(spec(), memory_file(MEMORY), other, 4);
        assert!(matches!(error, MachineError::State(StateError::Foreign)), "{error}");
    }
}

#[test]
fn f102_f107_a_state_of_other_devices_is_refused() {
    type Change = fn(&mut MachineState);
    let changes: [Change; 5] = [
        |state| drop(state.devices.blocks.pop()),
        |state| state.devices.networks.clear(),
        |state| {
            let more = devices(&MachineSpec { disk_slots: 9, ..spec() }).save();
            state.devices.blocks = more.blocks;
        },
        // The queues of another kind of device.
        |state| state.devices.networks[0] = state.devices.blocks.remove(0),
        |state| state.devices.blocks[1] = state.devices.networks.remove(0),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut state = frozen(&spec());
        change(&mut state);
        let restored = devices(&spec()).restore(state.devices);
        assert!(restored.is_err(), "{number}");
    }
    for (number, change) in [
        (|asked: &mut MachineSpec| asked.vcpus = 1) as fn(&mut MachineSpec),
        |asked| asked.memory_bytes += GRANULE,
        |asked| asked.disk_slots = 3,
        |asked| asked.disk_bytes += 512,
        |asked| asked.network_slots = 1,
    ]
    .into_iter()
    .enumerate()
    {
        let mut asked = spec();
        change(&mut asked);
        let memory = memory_file(asked.memory_bytes);
        let error = fork(asked, memory, written(&frozen(&spec())), 4);
        assert!(matches!(error, MachineError::State(StateError::OtherMachine(_))), "{number}: {error}");
    }
    // Another build's file, and no machine's at all.
    let mut newer = written(&frozen(&spec()));
    newer.seek(std::io::SeekFrom::Start(8)).unwrap();
    newer.write_all(&7_u32.to_le_bytes()).unwrap();
    newer.rewind().unwrap();
    let error = fork(spec(), memory_file(MEMORY), newer, 4);
    assert!(matches!(error, MachineError::State(StateError::Version(7))), "{error}");
}

#[test]
fn f109_a_missing_or_extra_tap_is_refused() {
    let zero = || File::open("/dev/zero").unwrap();
    // Behind a slot there must be a tap, which this is not.
    let attached = devices(&spec()).attach(vec![zero(), zero()]);
    assert!(matches!(attached, Err(MachineError::Io { action: "set up a tap", .. })));
}
