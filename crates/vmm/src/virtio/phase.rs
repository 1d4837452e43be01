//! How far a driver has got with a device, as the status register's bits say it. It only goes on, or back to the begin.
//!
//! ```text
//! Reset ─▶ Acknowledged ─▶ Driver ─▶ FeaturesOk ─▶ DriverOk
//!   ▲           └────────────┴──────────┴─────────────┴──▶ Failed      write 0: Reset
//! ```
//!
//! Source: virtio 1.2 §2.1, "Device Status Field", and §3.1.1, "Driver Requirements: Device Initialization".

use serde::{Deserialize, Serialize};

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// The device's own bit: it needs a reset.
pub(crate) const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Nobody has looked.
    Reset,
    /// A guest has seen it.
    Acknowledged,
    /// A driver has it: features are being chosen.
    Driver,
    /// Features are chosen: queues are being set up.
    FeaturesOk,
    /// In use: nothing can be set any more.
    DriverOk,
    /// The driver has given up.
    Failed,
}

impl Phase {
    /// The status register's bits.
    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Driver => ACKNOWLEDGE | DRIVER,
            Self::FeaturesOk => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::DriverOk => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            Self::Failed => FAILED,
        }
    }

    /// What a write of `bits` leads to: the same phase when it may not. Features that cannot be keep `Driver`.
    pub(crate) fn after(self, bits: u8, features_fit: bool) -> Self {
        if bits == 0 {
            return Self::Reset;
        }
        match (self, bits & !NEEDS_RESET) {
            (Self::Failed, _) => Self::Failed,
            (_, bits) if bits & FAILED != 0 => Self::Failed,
            (Self::Reset, bits) if bits == Self::Acknowledged.bits() => Self::Acknowledged,
            (Self::Reset | Self::Acknowledged, bits) if bits == Self::Driver.bits() => Self::Driver,
            (Self::Driver, bits) if bits == Self::FeaturesOk.bits() && features_fit => Self::FeaturesOk,
            (Self::FeaturesOk, bits) if bits == Self::DriverOk.bits() => Self::DriverOk,
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 6] =
        [Phase::Reset, Phase::Acknowledged, Phase::Driver, Phase::FeaturesOk, Phase::DriverOk, Phase::Failed];

    /// Every phase, every byte: it goes one step on, fails, is reset, or stays.
    #[test]
    fn f90_no_write_leads_astray() {
        for from in ALL {
            for bits in 0..=u8::MAX {
                for fit in [false, true] {
                    let to = from.after(bits, fit);
                    let place = |phase| ALL.iter().position(|&one| one == phase).unwrap();
                    let on = place(to) > place(from);
                    assert!(
                        !on || to == Phase::Failed || bits & !NEEDS_RESET == to.bits(),
                        "{from:?} {bits:#x} {to:?}"
                    );
                    assert!(to != Phase::DriverOk || matches!(from, Phase::FeaturesOk | Phase::DriverOk));
                    assert!(to != Phase::FeaturesOk || from == to || (fit && from == Phase::Driver));
                    // Back only by a reset.
                    assert!(place(to) >= place(from) || (bits == 0 && to == Phase::Reset));
                }
            }
        }
    }

    #[test]
    fn linux_gets_through() {
        let written = [0, 1, 3, 11, 15];
        let reached = written.iter().fold(Phase::Failed, |phase, &bits| phase.after(bits, true));
        assert_eq!(reached, Phase::DriverOk);
        assert_eq!(reached.bits(), 15);
    }
}
