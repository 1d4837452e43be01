//! Waiting for what takes a while.

use std::time::{Duration, Instant};

/// A deadline on this machine: `BULKHEAD_TEST_PATIENCE=10` gives ten times as long where it is known to be slow.
pub(crate) fn patient(deadline: Duration) -> Duration {
    deadline * u32::try_from(crate::setting("BULKHEAD_TEST_PATIENCE", 1)).unwrap_or(1)
}

/// Asks again and again until it is true, or the time is over.
pub fn eventually(deadline: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = patient(deadline);
    let began = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if began.elapsed() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
