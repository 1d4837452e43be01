//! Durations as numbers.

use crate::output::time;

/// Reads a duration such as `1m30s`, in nanoseconds; `0` needs no unit.
///
/// # Errors
/// Docker's text for anything else.
pub fn nanoseconds(text: &str) -> Result<i64, String> {
    let parsed = if text == "0" { Some(std::time::Duration::ZERO) } else { time::parse_duration(text) };
    let nanoseconds = parsed.and_then(|duration| i64::try_from(duration.as_nanos()).ok());
    nanoseconds.ok_or_else(|| format!("invalid duration {text:?}: write it as 30s, 1m30s or 500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_nanoseconds() {
        assert_eq!((nanoseconds("1m30s"), nanoseconds("0")), (Ok(90_000_000_000), Ok(0)));
        for wrong in ["", "5", "1x", "-1s", "99999999999h"] {
            assert!(nanoseconds(wrong).is_err(), "{wrong}");
        }
    }
}
