//! A rate that is kept: a bucket of tokens that fills evenly, of which each request takes its own. Bytes and requests have one each.
//!
//! What a full bucket holds passes at once; then requests wait until it has filled again. One that is larger than the bucket may
//! begin once it is not empty, and those behind it wait for as long as it took, so that the rate holds whatever sizes there are.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// What a full bucket holds, as the time in which it fills.
const BURST: Duration = Duration::from_millis(100);
/// The longest that one request may have those behind it wait; a clock's arithmetic ends somewhere.
const MOST_WAIT: Duration = Duration::from_hours(24);
const NANOSECONDS: u128 = 1_000_000_000;

/// A bucket. It is kept as the moment at which it will be full but for what was taken.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: NonZeroU64,
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(per_second: NonZeroU64, now: Instant) -> Self {
        Self { per_second, full_at: now }
    }

    /// When the next request may begin, if not now.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.full_at.checked_sub(BURST).unwrap_or(now);
        (due > now).then_some(due)
    }

    /// Takes what a request needs.
    pub(crate) fn take(&mut self, now: Instant, tokens: u64) {
        let nanoseconds = u128::from(tokens) * NANOSECONDS / u128::from(self.per_second.get());
        let fills_in = u64::try_from(nanoseconds).map_or(MOST_WAIT, Duration::from_nanos).min(MOST_WAIT);
        self.full_at = self.full_at.max(now) + fills_in;
    }
}

/// The buckets of one direction; none by default.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
}

impl Buckets {
    /// Full ones, where there is a rate.
    pub(crate) fn new(bytes: Option<NonZeroU64>, requests: Option<NonZeroU64>, now: Instant) -> Self {
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, now));
        Self { bytes: bucket(bytes), requests: bucket(requests) }
    }

    /// True where nothing is limited.
    pub(crate) fn is_none(&self) -> bool {
        self.bytes.is_none() && self.requests.is_none()
    }

    /// When the next request may begin, if not now.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        [&self.bytes, &self.requests].into_iter().flatten().filter_map(|bucket| bucket.due(now)).max()
    }

    /// Takes what a request of so many bytes needs. When: it may begin.
    pub(crate) fn take(&mut self, now: Instant, bytes: u64) {
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.requests, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(now, tokens);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_second: u64, now: Instant) -> Bucket {
        Bucket::new(NonZeroU64::new(per_second).unwrap(), now)
    }

    /// How long so many requests of one size take, each at the first moment at which it may.
    fn lasts(per_second: u64, requests: u32, size: u64) -> Duration {
        let began = Instant::now();
        let (mut now, mut bucket) = (began, bucket(per_second, began));
        for _ in 0..requests {
            now = bucket.due(now).unwrap_or(now);
            bucket.take(now, size);
        }
        now - began
    }

    #[test]
    fn the_rate_holds_whatever_the_sizes() {
        // 10 MB at 1 MB/s, but for the burst and the last one.
        for (requests, size) in [(10_000, 1000), (100, 100_000), (10, 1_000_000)] {
            let (least, most) = (10.0 - 0.1 - size as f64 / 1e6 - 0.001, 10.0);
            let took = lasts(1_000_000, requests, size).as_secs_f64();
            assert!((least..=most).contains(&took), "{requests} of {size}: {took}");
        }
        assert_eq!(lasts(1_000_000, 100, 1000), Duration::ZERO, "a burst passes at once");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let began = Instant::now();
        let mut bucket = bucket(1000, began);
        let later = began + Duration::from_secs(3600);
        assert_eq!(bucket.due(later), None);
        bucket.take(later, 200);
        assert_eq!(bucket.due(later), Some(later + Duration::from_millis(100)));
        assert_eq!(bucket.due(later + Duration::from_millis(100)), None);
    }

    #[test]
    fn no_request_ends_the_clock() {
        let now = Instant::now();
        let mut bucket = bucket(1, now);
        for _ in 0..1000 {
            bucket.take(now, u64::MAX);
        }
        assert!(bucket.due(now).is_some());
    }
}
