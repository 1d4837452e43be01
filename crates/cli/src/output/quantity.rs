//! Sizes for people. Source: docker/go-units.

/// Decimal, as `docker images` prints sizes: `4.27MB`.
#[must_use]
pub fn decimal_size(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// Binary, as `docker stats` prints memory: `5.25MiB`.
#[must_use]
pub fn binary_size(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(value: f64, step: f64, units: &[&str], digits: usize) -> String {
    let mut value = value;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units[unit])
}

/// Go's `%.*g` for values from 0 to 1024: so many significant digits, no zeros at the end.
fn significant(value: f64, digits: usize) -> String {
    let whole_digits = match value {
        ..10.0 => 1,
        ..100.0 => 2,
        ..1000.0 => 3,
        _ => 4,
    };
    let text = format!("{value:.*}", digits.saturating_sub(whole_digits));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (bytes, text) in [
            (0.0, "0B"),
            (999.0, "999B"),
            (1000.0, "1kB"),
            (4_269_678.0, "4.27MB"),
            (72.8e6, "72.8MB"),
            (1.5e9, "1.5GB"),
        ] {
            assert_eq!(decimal_size(bytes), text);
        }
        for (bytes, text) in [(0.0, "0B"), (1023.0, "1023B"), (5_505_024.0, "5.25MiB"), (1_073_741_824.0, "1GiB")] {
            assert_eq!(binary_size(bytes), text);
        }
    }
}
