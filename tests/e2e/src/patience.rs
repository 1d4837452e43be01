//! Waiting for what takes a while.

use std::time::{Duration, Instant};

/// Asks again and again until it is true, or the time is over.
pub fn eventually(deadline: Duration, mut holds: impl FnMut() -> bool) -> bool {
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
