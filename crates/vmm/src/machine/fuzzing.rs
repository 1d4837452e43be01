//! A whole machine but for KVM: what processors reach beside memory, and the file that it is frozen to.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kvm_bindings::{kvm_clock_data, kvm_irqchip};
use vmm_sys_util::eventfd::EventFd;

use super::devices::{Behind, Devices};
use crate::bus::Bus;
use crate::fuzz_input::Input;
use crate::layout::{PAGE, VIRTIO};
use crate::memory::GRANULE;
use crate::ports::Ports;
use crate::processor::registers::ProcessorState;
use crate::protocol::MachineSpec;
use crate::state::{self, MachineState};
use crate::virtio::fuzzing::{memory, seqpacket};

const MEMORY: u64 = 2 * GRANULE;
/// Accesses of one run.
const MOST_STEPS: usize = 500;

fn spec() -> MachineSpec {
    MachineSpec {
        memory_bytes: MEMORY,
        vcpus: 2,
        disk_slots: 2,
        slots_per_container: 2,
        disk_bytes: 1 << 30,
        network_slots: 1,
    }
}

fn devices() -> Devices {
    let ((port, files), (_, host)) = (UnixStream::pair().expect("two sockets"), seqpacket());
    let behind = Behind { port: port.into(), files: files.into(), host };
    Devices::new(&spec(), &memory(MEMORY), behind).expect("devices that there can be")
}

fn ports() -> Ports {
    Ports::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("an event counter"))
}

/// Reads and writes of all widths, of memory where there is none and of ports, while the machine runs and stands.
pub fn bus(data: &[u8]) {
    let mut input = Input(data);
    let devices = devices();
    devices.set_running(true);
    let bus = Bus::new(ports(), devices.pages());
    for _ in 0..MOST_STEPS {
        if access(&bus, &devices, &mut input).is_none() {
            break;
        }
    }
    let frozen = bus.ports.save();
    assert!(ports().restore(&frozen).is_ok(), "the serial port is always what it can become again");
    assert!(self::devices().restore(devices.save()).is_ok(), "and so is every device");
}

fn access(bus: &Bus, devices: &Devices, input: &mut Input<'_>) -> Option<()> {
    let kind = input.byte()?;
    match kind {
        0..=159 => {
            // Registers as a driver writes them, so that something is set up.
            let page = u64::from(input.byte()? % 8);
            let register = u64::from(input.byte()? & 0x7f) * 4;
            let address = VIRTIO + page * PAGE + register;
            let value = u32::try_from(input.number()? & 0xffff_ffff).ok()?;
            bus.write(address, &value.to_le_bytes());
            bus.read(address, &mut [0; 4]);
        }
        160..=199 => {
            let width = usize::from(input.byte()? % 17);
            let address = VIRTIO.wrapping_add(input.number()?);
            bus.read(address, &mut vec![0; width]);
            bus.write(address, input.bytes(width));
        }
        200..=239 => {
            let (port, width) = (input.half()?, usize::from(input.byte()? % 5));
            let port = if kind < 230 { 0x3f8 + port % 8 } else { port };
            // Whether that was the machine's end is not asked here.
            let _ = bus.ports.write(port, input.bytes(width));
            bus.ports.read(port, &mut vec![0; width]);
        }
        _ => devices.set_running(kind & 1 == 0),
    }
    Some(())
}

/// A machine's frozen state, changed in places.
pub fn state(data: &[u8]) {
    let mut input = Input(data);
    let controllers = [kvm_irqchip::default(); 3];
    let (clock, spec) = (kvm_clock_data::default(), spec());
    let processors =
        if input.byte().is_some_and(|byte| byte == 0) { vec![ProcessorState::default()] } else { Vec::new() };
    let whole = MachineState { spec, clock, controllers, processors, ports: ports().save(), devices: devices().save() };
    let Ok(mut bytes) = state::encode(&whole) else { return };
    let mut changed = false;
    for _ in 0..64 {
        let (Some(place), Some(kind)) = (input.number(), input.byte()) else { break };
        // Small numbers are places from the end, where the devices are; large ones from the begin.
        let length = bytes.len();
        let place = usize::try_from(place % (length as u64 + 8)).unwrap_or(0);
        let place = if kind & 1 == 0 { length.saturating_sub(place + 1) } else { place.min(length) };
        match kind >> 1 {
            0..=99 if place < length => bytes[place] = input.byte().unwrap_or(0),
            100..=109 => bytes.truncate(place),
            110..=119 => bytes.insert(place, input.byte().unwrap_or(0)),
            _ => {
                // What the header says is right again.
                let payload = u32::try_from(bytes.len().saturating_sub(state::HEADER_BYTES)).unwrap_or(0);
                if let Some(place) = bytes.get_mut(state::HEADER_BYTES - 4..state::HEADER_BYTES) {
                    place.copy_from_slice(&payload.to_le_bytes());
                }
            }
        }
        changed = true;
    }
    let decoded = state::decode::<MachineState>(&bytes);
    assert!(changed || decoded.is_ok());
    let Ok(decoded) = decoded else { return };
    // Refused, or a state that a driver could have made.
    let devices = Arc::new(devices());
    if devices.restore(decoded.devices).is_ok() {
        devices.set_running(true);
        devices.serve_all();
    }
    // As for the serial port, what it cannot be is an error.
    let _ = ports().restore(&decoded.ports);
}
