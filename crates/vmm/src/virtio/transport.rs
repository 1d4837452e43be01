//! The registers of one virtio device: a page of guest-physical addresses, and one interrupt.
//!
//! The registers of a queue can be written only between FEATURES_OK and DRIVER_OK, and only while that queue is not ready;
//! then its addresses are checked once, and stay (CVE-2026-5747 is what happens otherwise).
//!
//! Source: virtio 1.2 §4.2.2, "MMIO Device Register Layout".

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Queues, VirtioDevice};
use super::interrupt::Interrupt;
use super::phase::{NEEDS_RESET, Phase};
use super::queue::{ActiveState, QueueError, QueueSetup, overlap};
use crate::memory::GuestMemory;

/// Features of every device: version 1, indirect descriptors, event indices. Source: virtio 1.2 §6.
const VERSION_1: u64 = 1 << 32;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const COMMON: u64 = VERSION_1 | INDIRECT | EVENT_IDX;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Who made it: nobody that a driver would know.
const VENDOR: u32 = 0;
/// Where the configuration space begins.
const CONFIGURATION: u64 = 0x100;
/// Where a driver says that requests wait.
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;

/// A frozen transport that is none of this machine's.
#[derive(Debug, thiserror::Error)]
#[error("the frozen state of a virtio device of type {device_type} does not fit: {what}")]
pub(crate) struct UnfitState {
    device_type: u32,
    what: &'static str,
}

/// What a transport is frozen to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TransportState<S> {
    phase: Phase,
    needs_reset: bool,
    interrupts: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    setups: Vec<QueueSetup>,
    active: Vec<Option<ActiveState>>,
    device: S,
}

/// A device with its registers. Shared by processors, the device's thread and the machine.
pub(crate) struct Transport<D> {
    interrupt: Arc<Interrupt>,
    kicks: Vec<EventFd>,
    registers: Mutex<Registers<D>>,
}

struct Registers<D> {
    device: D,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    /// False while the machine is paused.
    running: bool,
    phase: Phase,
    needs_reset: bool,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    setups: Vec<QueueSetup>,
    active: Vec<Option<Queue>>,
}

impl<D: VirtioDevice> Transport<D> {
    /// A device that no driver has seen, in a paused machine.
    pub(crate) fn new(device: D, memory: Arc<GuestMemory>) -> io::Result<Self> {
        let interrupt = Arc::new(Interrupt::new()?);
        let kick = |_: &u16| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks = D::QUEUES.iter().map(kick).collect::<io::Result<_>>()?;
        let registers = Registers {
            device,
            memory,
            interrupt: Arc::clone(&interrupt),
            running: false,
            phase: Phase::Reset,
            needs_reset: false,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            setups: fresh_setups::<D>(),
            active: D::QUEUES.iter().map(|_| None).collect(),
        };
        Ok(Self { interrupt, kicks, registers: Mutex::new(registers) })
    }

    /// What KVM listens to for the device's interrupt.
    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What is written when requests wait in a queue, one for each.
    pub(crate) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The device looks into one of its queues; says when it wants to do so again, whatever the driver does.
    pub(crate) fn serve(&self, queue: usize) -> Option<Instant> {
        self.turn(|device, queues| device.serve(queue, queues))
    }

    /// Gives the device a turn with its queues, if its driver is ready and the machine runs. As [`Transport::serve`].
    pub(crate) fn turn(&self, turn: impl FnOnce(&mut D, &mut Queues<'_>) -> Result<(), QueueError>) -> Option<Instant> {
        let mut registers = self.lock();
        let registers = &mut *registers;
        if !registers.running || registers.phase != Phase::DriverOk || registers.needs_reset {
            return None;
        }
        let mut queues = Queues::new(&mut registers.active, &registers.memory, &registers.interrupt);
        if turn(&mut registers.device, &mut queues).is_err() {
            registers.needs_reset = true;
            registers.interrupt.configuration();
            return None;
        }
        registers.device.due()
    }

    /// Changes what is behind the device. When: any time; a request is either over or not begun.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut D) -> T) -> T {
        change(&mut self.lock().device)
    }

    /// The machine stands, or runs. When it begins to run, every queue is looked into, since a kick may have been lost.
    pub(crate) fn set_running(&self, running: bool) {
        self.lock().running = running;
        if running {
            self.kick_all();
        }
    }

    /// Has every queue looked into.
    pub(crate) fn kick_all(&self) {
        for kick in &self.kicks {
            // See `Interrupt::raise`.
            let _ = kick.write(1);
        }
    }

    /// What somebody waits for: the driver for the device, or the device for the driver. Nothing when nobody does. For a person.
    pub(crate) fn standing(&self) -> Option<String> {
        let registers = self.lock();
        let waiting = registers.active.iter().enumerate().filter_map(|(number, queue)| {
            let queue = queue.as_ref()?;
            let said = queue.avail_idx(registers.memory.as_ref(), Ordering::Relaxed).ok()?;
            let count = said.0.wrapping_sub(queue.next_avail());
            (count > 0).then(|| format!("{count} in queue {number}"))
        });
        let mut parts: Vec<String> = waiting.collect();
        if self.interrupt.pending() != 0 {
            parts.push("an interrupt that was not acknowledged".into());
        }
        if registers.needs_reset {
            parts.push("it has given up".into());
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// Freezes it. When: the machine stands.
    pub(crate) fn save(&self) -> TransportState<D::State> {
        let registers = self.lock();
        TransportState {
            phase: registers.phase,
            needs_reset: registers.needs_reset,
            interrupts: self.interrupt.pending(),
            device_features_select: registers.device_features_select,
            driver_features_select: registers.driver_features_select,
            driver_features: registers.driver_features,
            queue_select: registers.queue_select,
            setups: registers.setups.clone(),
            active: registers.active.iter().map(|queue| queue.as_ref().map(ActiveState::of)).collect(),
            device: registers.device.save(),
        }
    }

    /// Becomes what was frozen. When: it is new.
    ///
    /// # Errors
    /// [`UnfitState`] when a driver could not have brought it into this state.
    pub(crate) fn restore(&self, state: TransportState<D::State>) -> Result<(), UnfitState> {
        let unfit = |what| UnfitState { device_type: D::TYPE, what };
        let mut registers = self.lock();
        if state.setups.len() != D::QUEUES.len() || state.active.len() != D::QUEUES.len() {
            return Err(unfit("the number of queues"));
        }
        registers.driver_features = state.driver_features;
        if matches!(state.phase, Phase::FeaturesOk | Phase::DriverOk) && !registers.features_fit() {
            return Err(unfit("the features"));
        }
        for (number, active) in state.active.iter().enumerate() {
            let Some(active) = active else { continue };
            if !matches!(state.phase, Phase::FeaturesOk | Phase::DriverOk) {
                return Err(unfit("a queue in use without a driver"));
            }
            registers.setups[number] = active.setup();
            let apart = registers.is_apart(number);
            let event_idx = registers.driver_features & EVENT_IDX != 0;
            let queue = active.activate(D::QUEUES[number], event_idx, &registers.memory).filter(|_| apart);
            registers.active[number] = Some(queue.ok_or_else(|| unfit("a queue"))?);
        }
        registers.phase = state.phase;
        registers.needs_reset = state.needs_reset;
        registers.device_features_select = state.device_features_select;
        registers.driver_features_select = state.driver_features_select;
        registers.queue_select = state.queue_select;
        registers.setups = state.setups;
        if matches!(state.phase, Phase::FeaturesOk | Phase::DriverOk) {
            registers.device.chosen(state.driver_features);
        }
        registers.device.restore(state.device);
        self.interrupt.restore(state.interrupts);
        Ok(())
    }

    /// A processor reads. Anything but what a driver may do reads as zeroes.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIGURATION {
            let configuration = self.lock().device.configuration();
            let begin = usize::try_from(offset - CONFIGURATION).unwrap_or(usize::MAX);
            let rest = configuration.get(begin..).unwrap_or_default();
            let count = rest.len().min(data.len());
            data[..count].copy_from_slice(&rest[..count]);
            return;
        }
        let Some(data) = aligned(offset).then_some(data).and_then(|data| <&mut [u8; 4]>::try_from(data).ok()) else {
            return;
        };
        let value = match offset {
            INTERRUPT_STATUS => self.interrupt.pending(),
            _ => self.lock().read(offset),
        };
        *data = value.to_le_bytes();
    }

    /// A processor writes. Anything but what a driver may do has no effect.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let Some(data) = aligned(offset).then_some(data).and_then(|data| <[u8; 4]>::try_from(data).ok()) else {
            return;
        };
        let value = u32::from_le_bytes(data);
        match offset {
            INTERRUPT_ACKNOWLEDGE => self.interrupt.acknowledge(value),
            QUEUE_NOTIFY => {
                let kick = usize::try_from(value).ok().and_then(|number| self.kicks.get(number));
                if let Some(kick) = kick {
                    // See `Interrupt::raise`.
                    let _ = kick.write(1);
                }
            }
            _ => {
                let mut registers = self.lock();
                let before = registers.phase;
                registers.write(offset, value);
                let after = registers.phase;
                drop(registers);
                // A driver that had requests ready, and said so, before it was ready itself was not heard.
                if before != after && after == Phase::DriverOk {
                    self.kick_all();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers<D>> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh_setups<D: VirtioDevice>() -> Vec<QueueSetup> {
    D::QUEUES.iter().map(|&size| QueueSetup { size, descriptors: 0, available: 0, used: 0 }).collect()
}

impl<D: VirtioDevice> Registers<D> {
    fn offered(&self) -> u64 {
        COMMON | self.device.features()
    }

    /// A driver of version 1 that chose among what was offered.
    fn features_fit(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_select).ok().filter(|&number| number < D::QUEUES.len())
    }

    fn read(&self, offset: u64) -> u32 {
        let half = |features: u64, select: u32| match select {
            0 => features & u64::from(u32::MAX),
            1 => features >> 32,
            _ => 0,
        };
        let value = match offset {
            0x00 => u64::from(MAGIC),
            0x04 => u64::from(VERSION),
            0x08 => u64::from(D::TYPE),
            0x0c => u64::from(VENDOR),
            0x10 => half(self.offered(), self.device_features_select),
            0x34 => self.selected().map_or(0, |number| u64::from(D::QUEUES[number])),
            0x44 => u64::from(self.selected().is_some_and(|number| self.active[number].is_some())),
            0x70 => u64::from(self.phase.bits() | if self.needs_reset { NEEDS_RESET } else { 0 }),
            // No shared memory: its length and place are all ones. Source: §4.2.2, `SHMLenLow`.
            0xb0..=0xbc => u64::from(u32::MAX),
            _ => 0,
        };
        u32::try_from(value).unwrap_or(0)
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_select = value,
            0x20 if self.phase == Phase::Driver => match self.driver_features_select {
                0 => set_low(&mut self.driver_features, value),
                1 => set_high(&mut self.driver_features, value),
                _ => {}
            },
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = value,
            0x70 => self.set_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    /// The registers of the selected queue.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(number) = self.selected().filter(|_| self.phase == Phase::FeaturesOk) else { return };
        if offset == 0x44 {
            return self.set_ready(number, value);
        }
        if self.active[number].is_some() {
            return;
        }
        let setup = &mut self.setups[number];
        match offset {
            // What is no size stays one, and the queue cannot become ready.
            0x38 => setup.size = u16::try_from(value).unwrap_or(0),
            0x80 => set_low(&mut setup.descriptors, value),
            0x84 => set_high(&mut setup.descriptors, value),
            0x90 => set_low(&mut setup.available, value),
            0x94 => set_high(&mut setup.available, value),
            0xa0 => set_low(&mut setup.used, value),
            0xa4 => set_high(&mut setup.used, value),
            _ => {}
        }
    }

    fn set_ready(&mut self, number: usize, value: u32) {
        let wanted = value == 1 && self.is_apart(number);
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let activate = |setup: QueueSetup| setup.activate(D::QUEUES[number], event_idx, &self.memory);
        self.active[number] = if wanted { activate(self.setups[number]) } else { None };
    }

    /// True when this queue has no memory in common with one that is in use.
    fn is_apart(&self, number: usize) -> bool {
        let others = self.active.iter().zip(&self.setups).enumerate();
        let used = others.filter(|&(other, (active, _))| other != number && active.is_some());
        let taken: Vec<(u64, u64)> = used.flat_map(|(_, (_, setup))| setup.ranges()).collect();
        !self.setups[number].ranges().iter().any(|&range| taken.iter().any(|&other| overlap(range, other)))
    }

    fn set_status(&mut self, value: u32) {
        let Ok(bits) = u8::try_from(value) else { return };
        let next = self.phase.after(bits, self.features_fit());
        match next {
            Phase::Reset => self.reset(),
            Phase::FeaturesOk => self.device.chosen(self.driver_features),
            // Nobody looks into its queues any more, and what is frozen has none without a driver.
            Phase::Failed => self.active.fill_with(|| None),
            _ => {}
        }
        self.phase = next;
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.clear();
        self.needs_reset = false;
        (self.device_features_select, self.driver_features_select, self.queue_select) = (0, 0, 0);
        self.driver_features = 0;
        self.setups = fresh_setups::<D>();
        self.active.fill_with(|| None);
    }
}

/// Registers are read and written whole.
fn aligned(offset: u64) -> bool {
    offset.is_multiple_of(4)
}

fn set_low(field: &mut u64, value: u32) {
    *field = *field & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = *field & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
