//! Sizes such as `512m` and `1.5g`. Source: docker/go-units, `RAMInBytes`.

/// Reads a size in bytes: a number, perhaps with a fraction, and perhaps a unit b, k, m, g, t or p (powers of 1024),
/// which may be followed by `b` or `ib`.
///
/// # Errors
/// Docker's text for anything else.
pub fn bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let unit = unit.trim_start();
    let letter =
        unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b').filter(|rest| !rest.is_empty())).unwrap_or(unit);
    let power = match letter {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(invalid()),
    };
    let scale = 1u64 << (10 * power);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return Err(invalid());
    }
    let whole: u64 = whole.parse().map_err(|_| invalid())?;
    // Nine digits behind the point are finer than a byte of a gigabyte.
    let nine: u64 = format!("{fraction:0<9.9}").parse().map_err(|_| invalid())?;
    let part = u128::from(nine) * u128::from(scale) / 1_000_000_000;
    let total = u128::from(whole) * u128::from(scale) + part;
    i64::try_from(total).map_err(|_| invalid())
}

/// As [`bytes`], with `-1` for none.
///
/// # Errors
/// As [`bytes`].
pub fn bytes_or_unlimited(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { bytes(text) }
}

/// Reads a number of processors such as `1.5` into billionths. Source: docker/cli `opts.ParseCPUs`.
///
/// # Errors
/// For no number, a negative one, or one finer than a billionth.
pub fn nano_cpus(text: &str) -> Result<i64, String> {
    let invalid = || format!("failed to parse {text} as a rational number");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(invalid());
    }
    if fraction.trim_end_matches('0').len() > 9 {
        return Err("value is too precise".into());
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
    let nine: i64 = format!("{fraction:0<9.9}").parse().map_err(|_| invalid())?;
    whole.checked_mul(1_000_000_000).and_then(|nano| nano.checked_add(nine)).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("32", 32),
            ("32b", 32),
            ("32k", 32 << 10),
            ("32KiB", 32 << 10),
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("1.5g", 3 << 29),
            ("1 g", 1 << 30),
            ("2t", 2 << 40),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1.m", ".5m", "1..5m", "1e3", "32mm", "9999999999999p", "1,5g", "b"] {
            assert_eq!(bytes(bad), Err(format!("invalid size: '{bad}'")), "{bad}");
        }
        assert_eq!(bytes_or_unlimited("-1"), Ok(-1));
    }

    #[test]
    fn processors_are_billionths() {
        for (text, expected) in [("1", 1_000_000_000), ("1.5", 1_500_000_000), (".25", 250_000_000), ("0.000000001", 1)]
        {
            assert_eq!(nano_cpus(text), Ok(expected), "{text}");
        }
        for bad in ["", ".", "-1", "x", "1.0000000001", "1.5.2"] {
            assert!(nano_cpus(bad).is_err(), "{bad}");
        }
    }
}
