//! Messages about ports. There is one port, number 0; what has still to be said of it is three flags, so a guest cannot make
//! it more.
//!
//! Source: virtio 1.2 §5.3.6.2, "Multiport Device Operation".

use serde::{Deserialize, Serialize};

const PORT: u32 = 0;
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What a guest says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// The driver wants to know the ports.
    DeviceReady,
    /// It has made the port's device.
    PortReady,
    /// A program has opened or closed it.
    PortOpen(bool),
}

impl Message {
    /// Number of the port, event, value.
    pub(super) fn parse(bytes: [u8; 8]) -> Option<Self> {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
        let port = u32::from_le_bytes([p0, p1, p2, p3]);
        let (event, value) = (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
        match (event, port, value) {
            (DEVICE_READY, _, 1) => Some(Self::DeviceReady),
            (PORT_READY, PORT, 1) => Some(Self::PortReady),
            (PORT_OPEN, PORT, value) => Some(Self::PortOpen(value != 0)),
            _ => None,
        }
    }
}

/// What has still to be said, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcements {
    /// There is a port.
    pub(super) add: bool,
    /// Its name.
    pub(super) name: bool,
    /// The host has it open.
    pub(super) open: bool,
}

impl Announcements {
    /// True when all is said.
    pub(super) fn is_empty(&self) -> bool {
        !(self.add || self.name || self.open)
    }

    /// The next message, which is then said.
    pub(super) fn next(&mut self, port_name: &[u8]) -> Option<Vec<u8>> {
        if std::mem::take(&mut self.add) {
            return Some(message(DEVICE_ADD, 1));
        }
        if std::mem::take(&mut self.name) {
            return Some([message(PORT_NAME, 1), port_name.to_vec()].concat());
        }
        std::mem::take(&mut self.open).then(|| message(PORT_OPEN, 1))
    }
}

fn message(event: u16, value: u16) -> Vec<u8> {
    [&PORT.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}
