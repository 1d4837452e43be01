//! Durations as Go writes them.

/// Reads `1h2m3.5s`; gives nanoseconds.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.len() > 18 {
            return Err(invalid());
        }
        let scale: i128 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" | "μs" => 1_000,
            "ns" => 1,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        let number = |text: &str| if text.is_empty() { Ok(0) } else { text.parse::<i128>().map_err(|_| invalid()) };
        let tens = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        total += number(whole)? * scale + number(fraction)? * scale / tens;
        rest = after;
    }
    let signed = if text.starts_with('-') { -total } else { total };
    i64::try_from(signed).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn durations_are_gos() {
        for (text, nanoseconds) in
            [("5s", 5_000_000_000), ("1m30s", 90_000_000_000), ("1.5ms", 1_500_000), ("0", 0), ("-1ns", -1)]
        {
            assert_eq!(parse(text), Ok(nanoseconds), "{text}");
        }
        assert_eq!(parse("x"), Err("time: invalid duration \"x\"".to_owned()));
        assert_eq!(parse("5"), Err("time: missing unit in duration \"5\"".to_owned()));
        for bad in ["", "5y", ".s", "99999999999999999999h", "9999999999h"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
