//! How fast all disks of a machine together may be read and written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::protocol::DiskRates;
use crate::virtio::rate::Buckets;

/// What a request does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The limits that disks share; none by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits(Option<Arc<Mutex<[Buckets; 2]>>>);

impl Limits {
    /// Limits at these rates.
    pub(crate) fn new(rates: DiskRates) -> Self {
        if rates == DiskRates::default() {
            return Self(None);
        }
        let now = Instant::now();
        let read = Buckets::new(rates.read_bytes, rates.read_requests, now);
        let write = Buckets::new(rates.write_bytes, rates.write_requests, now);
        Self(Some(Arc::new(Mutex::new([read, write]))))
    }

    /// Takes a request of so many bytes.
    ///
    /// # Errors
    /// When to ask again.
    pub(super) fn take(&self, direction: Direction, bytes: usize) -> Result<(), Instant> {
        let Some(buckets) = &self.0 else { return Ok(()) };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match direction {
            Direction::Read => 0,
            Direction::Write => 1,
        };
        let (buckets, now) = (&mut buckets[number], Instant::now());
        if let Some(due) = buckets.due(now) {
            return Err(due);
        }
        buckets.take(now, bytes as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn each_direction_has_its_own_and_both_measures_hold() {
        let rate = NonZeroU64::new;
        let rates = DiskRates { read_bytes: rate(1000), write_requests: rate(10), ..DiskRates::default() };
        let (one, other) = (Limits::new(rates), Limits::default());
        assert!(one.take(Direction::Read, 1 << 20).is_ok(), "one may begin");
        let shared = one.clone();
        assert!(shared.take(Direction::Read, 1).is_err(), "and another disk waits for it");
        for _ in 0..2 {
            assert!(one.take(Direction::Write, 1 << 20).is_ok());
        }
        let due = one.take(Direction::Write, 1).unwrap_err();
        assert!(due > Instant::now());
        for direction in [Direction::Read, Direction::Write] {
            assert!((0..1000).all(|_| other.take(direction, 1 << 20).is_ok()));
        }
    }
}
