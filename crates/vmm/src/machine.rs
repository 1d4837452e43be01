//! The whole machine. Boot and fork make it in the same way, before they know more of it than its size; then one loads a kernel, the
//! other sets what was frozen.
//!
//! The order matters: memory slots before the interrupt controllers, or each slot costs several milliseconds (measured, see
//! docs/design/0018-own-vmm.md); the clock before any processor runs.

mod devices;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod standing;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_cpuid_entry2, kvm_irqchip,
};
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::devices::Behind;
use self::devices::Devices;
use crate::boot::acpi::Hardware;
use crate::boot::{self, BootError, Images};
use crate::bus::Bus;
use crate::layout::{SERIAL_GSI, TSS};
use crate::memory::{self, GuestMemory, Image, MemoryError, Writes};
use crate::ports::Ports;
use crate::processor::cpuid;
use crate::processor::gate::Gate;
use crate::processor::registers::{self, ProcessorError, ProcessorState};
use crate::processor::thread::{Runner, SharedVcpu};
use crate::protocol::{DiskRates, GuestEnd, MachineSpec, NetworkRates, PageRun};
use crate::state::{self, MachineState, StateError};
use crate::virtio::block::disk::{Disk, DiskError};

/// As many as a processor's number in a MADT entry, and a fork, have use for.
const MOST_PROCESSORS: u32 = 64;
/// Both interrupt controllers of a PC, and the I/O APIC, in the state's order.
const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What went wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It cannot have so many parts.
    #[error("a machine cannot have {count} {what}")]
    Size {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        count: u32,
    },
    /// KVM refused.
    #[error("kvm cannot {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Its memory cannot be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A processor cannot be set up or saved.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// It has nothing to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its frozen state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A disk does not fit its slot.
    #[error("slot {slot}")]
    Disk {
        /// Which.
        slot: usize,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A thread or an event counter cannot be made.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn kvm(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { action, source }
}

fn system(action: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Io { action, source }
}

/// A frozen machine, read and checked as far as that needs no KVM.
pub(crate) struct Frozen {
    memory: Image,
    state: MachineState,
}

impl Frozen {
    /// Reads the state of a machine of this size; its memory is only looked at.
    pub(crate) fn read(spec: &MachineSpec, memory: File, state: File) -> Result<Self, MachineError> {
        let memory = Image::check(memory, spec.memory_bytes)?;
        let state: MachineState = state::read(state)?;
        if state.spec != *spec {
            return Err(StateError::OtherMachine("another size").into());
        }
        Ok(Self { memory, state })
    }
}

/// How the guest's machine ended, once it has.
#[derive(Debug)]
pub(crate) struct End {
    /// Counts when there is something to read.
    pub(crate) event: EventFd,
    how: Mutex<Option<GuestEnd>>,
}

impl End {
    fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?, how: Mutex::new(None) })
    }

    /// The first processor that meets it says how.
    fn tell(&self, how: GuestEnd) {
        self.how.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(how);
        // See `virtio::interrupt`.
        let _ = self.event.write(1);
    }

    /// How it ended.
    pub(crate) fn how(&self) -> Option<GuestEnd> {
        self.how.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A machine, paused or running. It lives as long as the process.
pub(crate) struct Machine {
    kvm: Kvm,
    vm: VmFd,
    spec: MachineSpec,
    /// Mapped as long as `vm` is there.
    memory: Arc<GuestMemory>,
    processors: Vec<SharedVcpu>,
    /// What each processor says of itself.
    features: Vec<Vec<kvm_cpuid_entry2>>,
    runners: Vec<Runner>,
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    devices: Devices,
    end: Arc<End>,
}

impl Machine {
    /// A machine, paused, without memory and with nothing behind its slots: all that takes time and is the same for every machine
    /// of this size.
    pub(crate) fn new(kvm_fd: Kvm, spec: MachineSpec, behind: Behind) -> Result<Self, MachineError> {
        if spec.vcpus == 0 || spec.vcpus > MOST_PROCESSORS {
            return Err(MachineError::Size { what: "processors", count: spec.vcpus });
        }
        let memory = memory::reserve(spec.memory_bytes)?;
        let vm = kvm_fd.create_vm().map_err(kvm("make a machine"))?;
        memory::install(&vm, &memory)?;
        vm.set_tss_address(TSS).map_err(kvm("take its own pages"))?;
        vm.create_irq_chip().map_err(kvm("make interrupt controllers"))?;
        let devices = Devices::new(&spec, &memory, behind)?;
        devices.connect(&vm)?;
        let serial = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(system("make an event counter"))?;
        vm.register_irqfd(&serial, SERIAL_GSI).map_err(kvm("connect the serial port"))?;
        let bus = Arc::new(Bus::new(Ports::new(serial), devices.pages()));
        let processors = (0..spec.vcpus).map(|id| {
            let vcpu = vm.create_vcpu(u64::from(id)).map_err(kvm("make a processor"))?;
            Ok(Arc::new(Mutex::new(vcpu)))
        });
        let processors = processors.collect::<Result<_, MachineError>>()?;
        let end = Arc::new(End::new().map_err(system("make an event counter"))?);
        let (features, runners, gate) = (Vec::new(), Vec::new(), Arc::new(Gate::new()));
        let mut machine =
            Self { kvm: kvm_fd, vm, spec, memory, processors, features, runners, gate, bus, devices, end };
        machine.start_threads()?;
        Ok(machine)
    }

    /// What it consists of.
    pub(crate) fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Puts a tap behind each network slot, or behind none. When: once, before it runs.
    pub(crate) fn attach(&self, taps: Vec<File>) -> Result<(), MachineError> {
        self.devices.attach(taps)
    }

    /// Has it boot, paused. What its guest writes is in the memory's file.
    pub(crate) fn boot(mut self, memory: File, images: &mut Images<'_>) -> Result<Self, MachineError> {
        Image::check(memory, self.spec.memory_bytes)?.fill(&self.memory, Writes::Shared)?;
        self.mask_legacy_controllers()?;
        let count = self.spec.vcpus;
        let hardware = Hardware { processors: u8::try_from(count).unwrap_or(u8::MAX), devices: self.devices.count() };
        let entry = boot::load(&self.memory, self.spec.memory_bytes, images, hardware)?;
        let offered = cpuid::offered(&self.kvm).map_err(kvm("list the processor's features"))?;
        for (id, vcpu) in (0..count).zip(&self.processors) {
            let features = cpuid::of_processor(&offered, id, count);
            let vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            registers::begin(&vcpu, (id == 0).then_some(entry), &features)?;
            drop(vcpu);
            self.features.push(features);
        }
        Ok(self)
    }

    /// Makes it a copy of a frozen machine, paused. What its guest writes is its own.
    pub(crate) fn fork(
        self,
        frozen: Frozen,
        disks: Vec<Option<Disk>>,
        rates: DiskRates,
        working_set: &[PageRun],
    ) -> Result<Self, MachineError> {
        frozen.memory.fill(&self.memory, Writes::Private)?;
        frozen.memory.own(&self.memory, working_set)?;
        self.bind(disks, rates)?;
        self.restore(frozen.state)?;
        Ok(self)
    }

    /// Masks both controllers of a PC. A kernel that is told of the reduced kind of ACPI never sets them up; KVM gives them the lower
    /// interrupts all the same, and unmasked they would deliver each a second time, under the number of an exception.
    fn mask_legacy_controllers(&self) -> Result<(), MachineError> {
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut controller = kvm_irqchip { chip_id, ..Default::default() };
            self.vm.get_irqchip(&mut controller).map_err(kvm("read an interrupt controller"))?;
            controller.chip.pic.imr = u8::MAX;
            self.vm.set_irqchip(&controller).map_err(kvm("mask an interrupt controller"))?;
        }
        Ok(())
    }

    fn start_threads(&mut self) -> Result<(), MachineError> {
        self.devices.start_threads().map_err(system("start a device's thread"))?;
        for (number, vcpu) in self.processors.iter().enumerate() {
            let end = Arc::clone(&self.end);
            let on_end = Arc::new(move |how| end.tell(how));
            let (gate, bus) = (Arc::clone(&self.gate), Arc::clone(&self.bus));
            let runner = Runner::spawn(number, Arc::clone(vcpu), gate, bus, on_end);
            self.runners.push(runner.map_err(system("start a processor's thread"))?);
        }
        Ok(())
    }

    /// How and when the guest's machine ends.
    pub(crate) fn end(&self) -> &End {
        &self.end
    }

    /// Lets it run. When: paused; a machine that has ended stays as it is.
    pub(crate) fn resume(&self) {
        if self.end.how().is_none() {
            self.devices.set_running(true);
            self.gate.release();
        }
    }

    /// Holds it between two instructions. When: any time.
    pub(crate) fn pause(&self) {
        self.gate.hold(self.runners.len(), || self.runners.iter().for_each(Runner::kick));
        self.devices.set_running(false);
    }

    /// Puts other disks behind all slots. When: the guest uses none.
    pub(crate) fn bind(&self, disks: Vec<Option<Disk>>, rates: DiskRates) -> Result<(), MachineError> {
        self.devices.bind(disks, rates)
    }

    /// Puts another disk behind one slot. When: the guest does not use that one.
    pub(crate) fn bind_slot(&self, slot: u32, disk: Option<Disk>) -> Result<(), MachineError> {
        self.devices.bind_slot(slot, disk)
    }

    /// Limits how fast a network slot may be. When: any time.
    pub(crate) fn limit_network(&self, slot: u32, rates: NetworkRates) -> Result<(), MachineError> {
        self.devices.limit_network(slot, rates)
    }

    /// The console's last output.
    pub(crate) fn console(&self) -> Vec<u8> {
        self.bus.ports.console().bytes()
    }

    /// Pauses it, and says where it stands.
    pub(crate) fn stand(&self) -> String {
        self.pause();
        let processors = self.processors.iter().enumerate().map(|(number, vcpu)| {
            let vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            standing::processor(number, &vcpu)
        });
        processors.chain(self.devices.stand()).collect::<Vec<_>>().join("; ")
    }

    /// Pauses it and writes all but its memory. When: last.
    pub(crate) fn freeze(&self, file: File) -> Result<(), MachineError> {
        self.pause();
        let indices = registers::msr_indices(&self.kvm)?;
        let mut clock = self.vm.get_clock().map_err(kvm("read the clock"))?;
        clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
        let mut processors = Vec::new();
        for (vcpu, features) in self.processors.iter().zip(&self.features) {
            let vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            processors.push(ProcessorState::save(&vcpu, &indices, features.clone())?);
        }
        let mut controllers = [kvm_irqchip::default(); 3];
        for (controller, chip_id) in controllers.iter_mut().zip(CONTROLLERS) {
            controller.chip_id = chip_id;
            self.vm.get_irqchip(controller).map_err(kvm("read an interrupt controller"))?;
        }
        let devices = self.devices.save();
        let ports = self.bus.ports.save();
        let spec = self.spec.clone();
        let state = MachineState { spec, clock, controllers, processors, ports, devices };
        Ok(state::write(&state, file)?)
    }

    fn restore(&self, state: MachineState) -> Result<(), MachineError> {
        if state.processors.len() != self.processors.len() {
            return Err(StateError::OtherMachine("the number of processors").into());
        }
        for (controller, chip_id) in state.controllers.iter().zip(CONTROLLERS) {
            if controller.chip_id != chip_id {
                return Err(StateError::OtherMachine("an interrupt controller").into());
            }
            self.vm.set_irqchip(controller).map_err(kvm("set an interrupt controller"))?;
        }
        for (vcpu, frozen) in self.processors.iter().zip(&state.processors) {
            frozen.restore(&vcpu.lock().unwrap_or_else(PoisonError::into_inner))?;
        }
        self.vm.set_clock(&state.clock).map_err(kvm("set the clock"))?;
        self.bus.ports.restore(&state.ports).map_err(system("restore the serial port"))?;
        self.devices.restore(state.devices)
    }
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests;
