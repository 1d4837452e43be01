//! How fast the host's time-stamp counter runs, which is also the counter of an emulated guest.
//!
//! A guest's kernel measures that against another clock when it boots. Emulated on a busy host, where it is stopped in the
//! middle, it may be wrong by any factor, and every fork of its template would have a clock that runs at the wrong speed. So it
//! is told.
//!
//! Source: Linux, arch/x86/kernel/tsc.c, `tsc_early_khz`; QEMU, `cpu_get_ticks`.

use std::time::{Duration, Instant};

use crate::sys;

/// How long the measurement takes. An error of 1 us in reading either clock is then one of 10 ppm.
const SPAN: Duration = Duration::from_millis(100);
/// Readings of which the quickest counts: it was not interrupted.
const READINGS: u32 = 32;

/// Thousands of counts a second.
pub(crate) async fn kilohertz() -> u64 {
    let first = Reading::take();
    tokio::time::sleep(SPAN).await;
    Reading::take().kilohertz_since(&first)
}

/// Both clocks at one moment.
struct Reading {
    count: u64,
    at: Instant,
}

impl Reading {
    fn take() -> Self {
        let one = |_| {
            let before = Instant::now();
            let count = sys::time_stamp();
            let took = before.elapsed();
            (took, Self { count, at: before + took / 2 })
        };
        let quickest = (0..READINGS).map(one).min_by_key(|(took, _)| *took);
        quickest.map_or_else(|| Self { count: sys::time_stamp(), at: Instant::now() }, |(_, reading)| reading)
    }

    fn kilohertz_since(&self, earlier: &Self) -> u64 {
        let counts = u128::from(self.count.wrapping_sub(earlier.count));
        let nanoseconds = self.at.duration_since(earlier.at).as_nanos().max(1);
        u64::try_from(counts * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_a_rate() {
        let start = Instant::now();
        let first = Reading { count: u64::MAX - 999, at: start };
        let second = Reading { count: 209_999_000, at: start + SPAN };
        assert_eq!(second.kilohertz_since(&first), 2_100_000);
    }

    #[tokio::test]
    async fn two_measurements_agree() {
        let (first, second) = (kilohertz().await, kilohertz().await);
        // From slow embedded processors to the fastest there are.
        assert!((100_000..20_000_000).contains(&first), "{first}");
        assert!(first.abs_diff(second) < first / 1000, "{first} {second}");
    }
}
