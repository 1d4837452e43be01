//! Points in time as RFC 3339 text, the form image configurations use.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;

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

    /// `2026-11-22T19:56:01.5Z`: in UTC, with as many fractional digits as are needed.
    pub fn to_rfc3339(self) -> String {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(DAY));
        let second = self.seconds.rem_euclid(DAY);
        let fraction = match format!("{:09}", self.nanoseconds).trim_end_matches('0') {
            "" => String::new(),
            digits => format!(".{digits}"),
        };
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}Z",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }

    /// Reads RFC 3339 text; `None` if it is none.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once(['T', 't', ' '])?;
        let mut date = date.splitn(3, '-').map(parse_digits);
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let zone_at = rest.find(['Z', 'z', '+', '-'])?;
        let (clock, zone) = rest.split_at(zone_at);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let mut clock = clock.splitn(3, ':').map(parse_digits);
        let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
        let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
        let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        let nanoseconds = u32::try_from(parse_digits(&digits)?).ok()?;
        let seconds = days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset(zone)?;
        in_range.then_some(Self { seconds, nanoseconds })
    }
}

fn parse_digits(text: &str) -> Option<i64> {
    let digits_only = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits_only.then(|| text.parse().ok())?
}

/// Seconds east of UTC for `Z`, `+02:00`, `-07:30`.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let seconds = parse_digits(hours)? * 3600 + parse_digits(minutes)? * 60;
    Some(if zone.starts_with('-') { -seconds } else { seconds })
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. Source: H. Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms" (eras of 400 years that begin in March, so that the leap day is a year's last).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
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
