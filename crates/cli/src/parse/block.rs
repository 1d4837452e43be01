//! `--device-read-bps` and its kin.

use bollard::models::{ResourcesBlkioWeightDevice, ThrottleDevice};

use super::size;
use crate::error::{CliError, CliResult};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Bytes a second, such as `1mb`.
    Bytes,
    /// Operations a second.
    Operations,
}

/// Reads `DEVICE:RATE` of every flag.
///
/// # Errors
/// [`CliError::Usage`].
pub fn throttles(list: &[String], rate: Rate) -> CliResult<Option<Vec<ThrottleDevice>>> {
    let one = |text: &String| {
        let invalid = || CliError::Usage(format!("bad format: {text:?}: it has the form DEVICE:RATE"));
        let (device, value) = device_and_value(text).ok_or_else(invalid)?;
        let parsed = match rate {
            Rate::Bytes => size::bytes(value).ok(),
            Rate::Operations => value.parse().ok().filter(|value| *value >= 0),
        };
        Ok(ThrottleDevice { path: Some(device.to_owned()), rate: Some(parsed.ok_or_else(invalid)?) })
    };
    (!list.is_empty()).then(|| list.iter().map(one).collect()).transpose()
}

/// Reads `DEVICE:WEIGHT` of every flag.
///
/// # Errors
/// [`CliError::Usage`].
pub fn weights(list: &[String]) -> CliResult<Option<Vec<ResourcesBlkioWeightDevice>>> {
    let one = |text: &String| {
        let invalid = || CliError::Usage(format!("bad format: {text:?}: it has the form DEVICE:WEIGHT, 10 to 1000"));
        let (device, value) = device_and_value(text).ok_or_else(invalid)?;
        let weight = value.parse::<usize>().ok().filter(|weight| (10..=1000).contains(weight)).ok_or_else(invalid)?;
        Ok(ResourcesBlkioWeightDevice { path: Some(device.to_owned()), weight: Some(weight) })
    };
    (!list.is_empty()).then(|| list.iter().map(one).collect()).transpose()
}

fn device_and_value(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(device, _)| device.starts_with("/dev/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let read = throttles(&["/dev/sda:1mb".into()], Rate::Bytes).unwrap().unwrap();
        assert_eq!((read[0].path.as_deref(), read[0].rate), (Some("/dev/sda"), Some(1 << 20)));
        assert_eq!(throttles(&["/dev/sda:7".into()], Rate::Operations).unwrap().unwrap()[0].rate, Some(7));
        assert_eq!(weights(&["/dev/sda:100".into()]).unwrap().unwrap()[0].weight, Some(100));
        assert!(throttles(&["sda:1".into()], Rate::Bytes).is_err());
        assert!(
            throttles(&["/dev/sda:1mb".into()], Rate::Operations).is_err() && weights(&["/dev/sda:5".into()]).is_err()
        );
    }
}
