//! Points in time as RFC 3339 text, the form image configurations use.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Timestamp {
    /// Seconds since the epoch, rounded towards the past.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The present, or any other moment of the system's clock.
    pub fn from_system_time(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                Self { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanoseconds: after.subsec_nanos() }
            }
            Err(before) => {
                let before = before.duration();
                let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
                match before.subsec_nanos() {
                    0 => Self { seconds, nanoseconds: 0 },
                    nanoseconds => {
                        Self { seconds: seconds.saturating_sub(1), nanoseconds: 1_000_000_000 - nanoseconds }
                    }
                }
            }
        }
    }

    /// `2026-11-22T19:56:01.5Z`: in UTC, with as many fractional digits as are needed. The epoch, if it is no date.
    pub fn to_rfc3339(self) -> String {
        let date = DateTime::from_timestamp(self.seconds, self.nanoseconds).unwrap_or(DateTime::UNIX_EPOCH);
        let fraction = match format!("{:09}", date.timestamp_subsec_nanos()).trim_end_matches('0') {
            "" => String::new(),
            digits => format!(".{digits}"),
        };
        format!("{}{fraction}Z", date.format("%Y-%m-%dT%H:%M:%S"))
    }

    /// Reads RFC 3339 text; `None` if it is none.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let date = DateTime::parse_from_rfc3339(text).ok()?;
        // A leap second's have a thousand million more.
        let nanoseconds = date.timestamp_subsec_nanos().min(999_999_999);
        Some(Self { seconds: date.timestamp(), nanoseconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_read_and_written() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_795_377_361, 500_000_000, "2026-11-22T19:56:01.5Z"),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999Z"),
            (-62_135_596_800, 0, "0001-01-01T00:00:00Z"),
        ] {
            let time = Timestamp { seconds, nanoseconds };
            assert_eq!(time.to_rfc3339(), text);
            assert_eq!(Timestamp::from_rfc3339(text), Some(time));
        }
        assert_eq!(Timestamp::from_rfc3339("1970-01-01T02:00:00+02:00"), Some(Timestamp::default()));
    }

    #[test]
    fn other_text_is_no_moment() {
        for text in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00+2", "T::Z"] {
            assert_eq!(Timestamp::from_rfc3339(text), None, "{text}");
        }
    }
}
