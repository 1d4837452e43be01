//! Ports of a PC that a guest uses: a serial port as its console, and the ways to reset and to switch off.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::layout::{KEYBOARD_STATUS, SERIAL, SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_OFF};
use crate::protocol::GuestEnd;

/// Registers of the serial port.
const SERIAL_PORTS: u16 = 8;
/// The command to the keyboard controller that pulls the processor's reset line. Source: IBM PC AT, 8042, command 0xfe.
const PULSE_RESET: u8 = 0xfe;
/// The chip set's reset register, and its bit "reset". Source: Intel ICH9 datasheet, `RST_CNT`.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CPU: u8 = 4;
/// Bit "sleep enable", above the three bits of the type. Source: ACPI 6.5 §4.8.3.7, "Sleep Control Register".
const SLEEP_ENABLE: u8 = 1 << 5;
/// How much of the console's output is kept.
const CONSOLE_BYTES: usize = 64 * 1024;

/// The last bytes that the guest printed.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConsoleRing(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleRing {
    /// All that is kept, oldest first.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ConsoleRing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut ring = self.lock();
        for &byte in bytes {
            if ring.len() == CONSOLE_BYTES {
                ring.pop_front();
            }
            ring.push_back(byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port's interrupt.
#[derive(Debug)]
struct Wire(EventFd);

impl Trigger for Wire {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port, frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortsState {
    divisor: [u8; 2],
    /// Interrupt enable, interrupt identification, line control, line status, modem control, modem status, scratch.
    registers: [u8; 7],
}

/// All ports.
pub(crate) struct Ports {
    serial: Mutex<Serial<Wire, NoEvents, ConsoleRing>>,
    console: ConsoleRing,
}

impl Ports {
    /// The ports; `interrupt` is the serial port's.
    pub(crate) fn new(interrupt: EventFd) -> Self {
        let console = ConsoleRing::default();
        Self { serial: Mutex::new(Serial::new(Wire(interrupt), console.clone())), console }
    }

    /// What the guest printed.
    pub(crate) fn console(&self) -> &ConsoleRing {
        &self.console
    }

    /// A processor reads. A port that nobody has reads as ones.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let [byte] = data else { return };
        *byte = match port {
            SERIAL.. if port < SERIAL + SERIAL_PORTS => self.serial().read(offset(port)),
            KEYBOARD_STATUS | SLEEP_STATUS | RESET_CONTROL => 0,
            _ => 0xff,
        };
    }

    /// A processor writes; this may be the machine's end.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<GuestEnd> {
        let &[byte] = data else { return None };
        match port {
            SERIAL.. if port < SERIAL + SERIAL_PORTS => {
                // The ring takes everything, and the wire fails only when it is up anyway.
                let _ = self.serial().write(offset(port), byte);
                None
            }
            KEYBOARD_STATUS if byte == PULSE_RESET => Some(GuestEnd::Reset),
            RESET_CONTROL if byte & RESET_CPU != 0 => Some(GuestEnd::Reset),
            SLEEP_CONTROL if byte & SLEEP_ENABLE != 0 && byte >> 2 & 7 == SLEEP_TYPE_OFF => Some(GuestEnd::PowerOff),
            _ => None,
        }
    }

    /// Freezes it. What was typed and not yet read is lost: nobody types.
    pub(crate) fn save(&self) -> PortsState {
        let state = self.serial().state();
        PortsState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            registers: [
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
        }
    }

    /// Becomes what was frozen.
    ///
    /// # Errors
    /// When the serial port's interrupt cannot be raised.
    pub(crate) fn restore(&self, state: &PortsState) -> io::Result<()> {
        let [enable, identification, line_control, line_status, modem_control, modem_status, scratch] = state.registers;
        let state = SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: Vec::new(),
        };
        let mut serial = self.serial();
        let wire = Wire(serial.interrupt_evt().0.try_clone()?);
        *serial = Serial::from_state(&state, wire, NoEvents, self.console.clone())
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(())
    }

    fn serial(&self) -> MutexGuard<'_, Serial<Wire, NoEvents, ConsoleRing>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn offset(port: u16) -> u8 {
    u8::try_from(port - SERIAL).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Ports {
        Ports::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn the_console_keeps_its_last_bytes() {
        let ports = ports();
        for number in 0..CONSOLE_BYTES + 3 {
            assert_eq!(ports.write(SERIAL, &[u8::try_from(number % 251).unwrap()]), None);
        }
        let kept = ports.console().bytes();
        assert_eq!((kept.len(), kept[0]), (CONSOLE_BYTES, 3));
    }

    #[test]
    fn f98_a_guest_can_reset_and_switch_off_and_nothing_else() {
        let ports = ports();
        let mut ends = Vec::new();
        for port in 0..=u16::MAX {
            for byte in [0, 1, PULSE_RESET, 0x34] {
                ends.extend(ports.write(port, &[byte]).map(|end| (port, byte, end)));
            }
            for width in [0, 2, 4] {
                assert_eq!(ports.write(port, &vec![PULSE_RESET; width]), None);
                ports.read(port, &mut vec![0; width]);
            }
            ports.read(port, &mut [0]);
        }
        assert_eq!(
            ends,
            [
                (KEYBOARD_STATUS, PULSE_RESET, GuestEnd::Reset),
                (SLEEP_CONTROL, 0x34, GuestEnd::PowerOff),
                (RESET_CONTROL, PULSE_RESET, GuestEnd::Reset),
                (RESET_CONTROL, 0x34, GuestEnd::Reset),
            ]
        );
    }

    #[test]
    fn the_serial_port_comes_back_as_it_was() {
        let ports = ports();
        for (register, value) in [(3, 0x80), (0, 3), (1, 1), (3, 0x13), (4, 0x0b), (1, 5)] {
            ports.write(SERIAL + register, &[value]);
        }
        let frozen = ports.save();
        let fork = self::ports();
        fork.restore(&frozen).unwrap();
        assert_eq!(fork.save(), frozen);
        assert_ne!(frozen, PortsState::default());
    }
}
