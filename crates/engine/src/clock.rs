//! Points in time, and how the Engine API writes and reads them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

/// Nanoseconds since the epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// How Go writes a time that never was.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

const NANOS_PER_SEC: i64 = 1_000_000_000;

impl Timestamp {
    /// The host's clock.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(NANOS_PER_SEC)
    }

    /// Nanoseconds within the second.
    #[must_use]
    pub fn nanos(self) -> i64 {
        self.0.rem_euclid(NANOS_PER_SEC)
    }

    /// Time that passed since then, zero if it lies ahead.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(u64::try_from(Self::now().0 - self.0).unwrap_or(0))
    }

    /// As Go's `RFC3339Nano` writes it: trailing zeros of the fraction left out.
    #[must_use]
    pub fn to_rfc3339_nano(self) -> String {
        let (date, nanos) = (self.to_seconds_text(), self.nanos());
        if nanos == 0 {
            return format!("{date}Z");
        }
        let fraction = format!("{nanos:09}");
        format!("{date}.{}Z", fraction.trim_end_matches('0'))
    }

    /// RFC 3339 with all nine digits of the fraction, as `docker logs --timestamps` prints it.
    #[must_use]
    pub fn to_rfc3339_fixed(self) -> String {
        format!("{}.{:09}Z", self.to_seconds_text(), self.nanos())
    }

    /// Date and time to the second, without a zone.
    fn to_seconds_text(self) -> String {
        self.date().format("%Y-%m-%dT%H:%M:%S").to_string()
    }

    fn date(self) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(self.0)
    }

    /// Hour and minute of the day, UTC, as `ps` prints a start time.
    #[must_use]
    pub fn to_hour_minute(self) -> String {
        self.date().format("%H:%M").to_string()
    }

    /// Reads RFC 3339 with any fraction and zone.
    ///
    /// Shape: `2026-11-22T20:00:00[.fraction](Z|+hh:mm|-hh:mm)`; without a zone UTC is meant.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        if !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
            return None;
        }
        let date = match DateTime::parse_from_rfc3339(text) {
            Ok(date) => date.to_utc(),
            Err(_) => text.parse::<NaiveDateTime>().ok()?.and_utc(),
        };
        date.timestamp_nanos_opt().map(Self)
    }

    /// Reads what clients send in `since` and `until`: seconds with an optional fraction, or RFC 3339.
    #[must_use]
    pub fn parse_query(text: &str) -> Option<Self> {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        match (seconds.parse::<i64>(), parse_fraction(fraction)) {
            (Ok(seconds), Some(nanos)) => Some(Self(seconds.checked_mul(NANOS_PER_SEC)?.checked_add(nanos)?)),
            _ => Self::parse_rfc3339(text),
        }
    }

    /// Reads what clients send in the filter `until`: a duration before now such as `24h`, or as [`Timestamp::parse_query`].
    #[must_use]
    pub fn parse_until(text: &str) -> Option<Self> {
        let ago = parse_duration(text).map(|nanos| Self(Self::now().0.saturating_sub(nanos)));
        ago.or_else(|| Self::parse_query(text))
    }
}

/// Nanoseconds of Go's duration form, such as `1h30m`.
fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_i64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let nanos = match &rest[..unit] {
            "h" => 3600 * NANOS_PER_SEC,
            "m" => 60 * NANOS_PER_SEC,
            "s" => NANOS_PER_SEC,
            "ms" => 1_000_000,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(nanos)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

/// As Go writes a duration: `1m30s`, `1.5s`, `250ms`.
#[must_use]
pub fn go_duration(duration: Duration) -> String {
    let (whole, below) = (duration.as_secs(), duration.subsec_nanos());
    let decimal = |value: u128, unit: u128| {
        let fraction = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let text = format!("{}.{fraction}", value / unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let nanos = duration.as_nanos();
    match whole {
        0 if below == 0 => "0s".into(),
        0 if below < 1_000 => format!("{below}ns"),
        0 if below < 1_000_000 => decimal(nanos, 1_000) + "µs",
        0 => decimal(nanos, 1_000_000) + "ms",
        _ => {
            let seconds = decimal(u128::from(whole % 60) * 1_000_000_000 + u128::from(below), 1_000_000_000) + "s";
            match (whole / 3600, whole / 60 % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339_nano())
    }
}

/// Nanoseconds of a decimal fraction of up to nine digits; further digits are cut.
fn parse_fraction(digits: &str) -> Option<i64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let cut: String = digits.chars().chain("000000000".chars()).take(9).collect();
    cut.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (ms, text) in
            [(0, "0s"), (250, "250ms"), (1500, "1.5s"), (90_000, "1m30s"), (3_600_000, "1h0m0s"), (2000, "2s")]
        {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(go_duration(Duration::from_nanos(1_500)), "1.5µs");
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(parse_duration("250ms"), Some(250_000_000));
        for bad in ["", "1", "h", "1d", "1h2"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(Timestamp::parse_until("x"), None);
        assert_eq!(Timestamp::parse_until("12"), Some(Timestamp(12_000_000_000)));
        let day_ago = Timestamp::parse_until("24h").unwrap();
        assert!((86_399..86_460).contains(&day_ago.elapsed().as_secs()));
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_709_164_799_500_000_000, "2024-02-28T23:59:59.5Z"),
            (1_709_164_800_000_000_001, "2024-02-29T00:00:00.000000001Z"),
            (-1_000_000_000, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(nanos).to_rfc3339_nano(), text);
            assert_eq!(Timestamp::parse_rfc3339(text), Some(Timestamp(nanos)), "{text}");
        }
        assert_eq!(Timestamp(500_000_000).to_rfc3339_fixed(), "1970-01-01T00:00:00.500000000Z");
    }

    #[test]
    fn clients_may_send_seconds_fractions_or_dates() {
        assert_eq!(Timestamp::parse_query("12"), Some(Timestamp(12 * NANOS_PER_SEC)));
        assert_eq!(Timestamp::parse_query("12.000000034"), Some(Timestamp(12 * NANOS_PER_SEC + 34)));
        assert_eq!(Timestamp::parse_query("1970-01-01T01:00:12+01:00"), Some(Timestamp(12 * NANOS_PER_SEC)));
        for bad in ["", "x", "1.x", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00+1", "1970-01-01 00:00"] {
            assert_eq!(Timestamp::parse_query(bad), None, "{bad:?}");
        }
    }
}
