//! Wall-clock time, as it travels.

use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;

/// Nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The protobuf form of nanoseconds since the epoch.
#[must_use]
pub fn timestamp(ns: i64) -> MessageField<Timestamp> {
    let nanos = i32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or_default();
    MessageField::some(Timestamp { seconds: ns.div_euclid(1_000_000_000), nanos, ..Timestamp::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_split_as_protobuf_wants() {
        let split = |ns| timestamp(ns).into_option().map(|t| (t.seconds, t.nanos)).unwrap();
        assert_eq!(split(1_700_000_000_123_456_789), (1_700_000_000, 123_456_789));
        assert_eq!(split(-1), (-1, 999_999_999));
    }
}
