//! Times for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long ago in one unit: `5 minutes`. Source: docker/go-units, `HumanDuration`.
#[must_use]
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / MINUTE, (seconds + HOUR / 2) / HOUR, seconds / DAY);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..MINUTE => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{days} days"),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", days / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// Seconds since the epoch as `5 minutes ago`; nothing for a time that is not known.
#[must_use]
pub fn ago(unix: i64) -> String {
    let Ok(unix) = u64::try_from(unix) else { return "N/A".into() };
    if unix == 0 {
        return "N/A".into();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} ago", human(now.saturating_sub(Duration::from_secs(unix))))
}

/// Seconds since the epoch as `2026-11-22 19:56:00 +0000 UTC`.
#[must_use]
pub fn utc(unix: i64) -> String {
    let (date, rest) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    let (year, month, day) = civil(date);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} +0000 UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Seconds and nanoseconds since the epoch as RFC 3339 in UTC, nine digits.
#[must_use]
pub fn rfc3339(nanos: i64) -> String {
    let (unix, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let text = utc(unix);
    format!("{}T{}.{fraction:09}Z", &text[..text.len() - 19], &text[text.len() - 18..text.len() - 10])
}

/// Year, month and day of a day since the epoch. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Seconds of a Go duration such as `1h30m`, `90s`, `250ms`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let seconds = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(value * seconds).ok()?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

/// What `--since` and `--until` send: a duration back from now, or what the engine reads itself.
#[must_use]
pub fn point(text: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match parse_duration(text) {
        Some(back) => {
            let at = now.saturating_sub(back);
            format!("{}.{:09}", at.as_secs(), at.subsec_nanos())
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_as_docker_tells_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (179, "2 minutes"),
            (3600, "About an hour"),
            (2 * HOUR, "2 hours"),
            (3 * DAY, "3 days"),
            (21 * DAY, "3 weeks"),
            (100 * DAY, "3 months"),
            (800 * DAY, "2 years"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34:56 +0000 UTC");
        assert_eq!(utc(-1), "1969-12-31 23:59:59 +0000 UTC");
        assert_eq!(rfc3339(951_827_696_000_000_005), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(ago(0), "N/A");
    }

    #[test]
    fn go_durations_are_read() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        for bad in ["", "5", "h", "5x", "1h2"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(point("2026-01-01T00:00:00Z"), "2026-01-01T00:00:00Z");
        assert!(point("10m").parse::<f64>().is_ok());
    }
}
