//! Named points of the store's work at which a test kills the process, as `kill -9` and a power cut do.
//!
//! A point is a call of [`reach`]. In an ordinary build it is nothing. In a build with the feature `failpoints`, which only
//! the tests make, the process that was started with `BULKHEAD_FAILPOINT=NAME` kills itself when it comes to that point,
//! with `NAME:3` when it comes there for the third time.
//!
//! Source: docs/design/0009-store.md, which lists the points.

/// Comes to a point. Shape: `point` is `operation.step`, in lower case.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn reach(_point: &'static str) {}

/// Comes to a point. Shape: `point` is `operation.step`, in lower case. When: does not return if the point is the one that
/// the process was told to die at.
#[cfg(feature = "failpoints")]
pub fn reach(point: &'static str) {
    armed::reach(point);
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    /// Name of the point, and how often it is passed before the process dies there.
    static CHOSEN: OnceLock<Option<(String, AtomicUsize)>> = OnceLock::new();

    pub(super) fn reach(point: &'static str) {
        let chosen = CHOSEN.get_or_init(|| parse(&std::env::var("BULKHEAD_FAILPOINT").unwrap_or_default()));
        let Some((_, left)) = chosen.as_ref().filter(|(name, _)| name == point) else { return };
        if left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        // Nothing may run on, not even other threads' destructors.
        let killed = kill_process(getpid(), Signal::KILL);
        unreachable!("the process killed itself at {point}: {killed:?}");
    }

    fn parse(text: &str) -> Option<(String, AtomicUsize)> {
        let (name, times) = text.split_once(':').unwrap_or((text, "1"));
        (!name.is_empty()).then(|| (name.to_owned(), AtomicUsize::new(times.parse().unwrap_or(1))))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_may_be_passed_some_times() {
            let read = |text| parse(text).map(|(name, left)| (name, left.into_inner()));
            assert_eq!(read("rm.recorded"), Some(("rm.recorded".to_owned(), 1)));
            assert_eq!(read("rm.recorded:3"), Some(("rm.recorded".to_owned(), 3)));
            assert_eq!(read(""), None);
        }
    }
}
