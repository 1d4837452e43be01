//! How fast a container may be on a network: options of its endpoint, since Docker has no flag for it.
//!
//! ```text
//! docker run --isolation=hyperv --network name=bridge,driver-opt=dev.bulkhead.rate.send-bytes=10m …
//! ```

use std::num::NonZeroU64;

use bollard::models::EndpointSettings;
use proto::Isolation;
use proto::network::NetworkRates;

use crate::error::{ApiError, ApiResult};

/// Begins the names of all of these options.
const PREFIX: &str = "dev.bulkhead.rate.";

/// The rates that an endpoint's options ask for. Shape: each a second, in units of Docker's sizes (`10m`); zero is no limit.
///
/// # Errors
/// 400 for an option or a rate that there is not; 501 for a container that has no utility VM.
pub fn rates(isolation: Isolation, asked: &EndpointSettings) -> ApiResult<NetworkRates> {
    let mut rates = NetworkRates::default();
    for (option, value) in asked.driver_opts.iter().flatten() {
        let Some(name) = option.strip_prefix(PREFIX) else { continue };
        let rate = match name {
            "receive-bytes" => &mut rates.receive_bytes,
            "send-bytes" => &mut rates.send_bytes,
            "receive-frames" => &mut rates.receive_frames,
            "send-frames" => &mut rates.send_frames,
            _ => return Err(ApiError::invalid(format!("unknown driver option {option:?}"))),
        };
        *rate = parse(value).ok_or_else(|| ApiError::invalid(format!("invalid rate {value:?} for {option}")))?;
        if isolation == Isolation::Process {
            return Err(ApiError::not_implemented(format!("{option}: needs isolation hyperv")));
        }
    }
    Ok(rates)
}

fn parse(value: &str) -> Option<Option<NonZeroU64>> {
    if value == "0" { Some(None) } else { crate::log::parse_size(value).map(NonZeroU64::new) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(options: &[(&str, &str)]) -> EndpointSettings {
        let options = options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        EndpointSettings { driver_opts: Some(options), ..EndpointSettings::default() }
    }

    #[test]
    fn each_direction_and_measure_has_an_option() {
        let asked = asking(&[
            ("dev.bulkhead.rate.receive-bytes", "10m"),
            ("dev.bulkhead.rate.send-frames", "500"),
            ("dev.bulkhead.rate.send-bytes", "0"),
            ("com.docker.network.endpoint.ifname", "eth7"),
        ]);
        let found = rates(Isolation::Hyperv, &asked).unwrap();
        let expected = NetworkRates {
            receive_bytes: NonZeroU64::new(10 << 20),
            send_frames: NonZeroU64::new(500),
            ..NetworkRates::default()
        };
        assert_eq!(found, expected);
        let refused = rates(Isolation::Process, &asked).unwrap_err();
        assert!(refused.message.ends_with("needs isolation hyperv"), "{}", refused.message);
        assert_eq!(rates(Isolation::Process, &EndpointSettings::default()).unwrap(), NetworkRates::default());
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for value in ["", "-1", "fast", "1x", "99999999999999999999"] {
            let asked = asking(&[("dev.bulkhead.rate.send-bytes", value)]);
            assert!(rates(Isolation::Hyperv, &asked).is_err(), "{value}");
        }
        let asked = asking(&[("dev.bulkhead.rate.sent-bytes", "1m")]);
        assert!(rates(Isolation::Hyperv, &asked).unwrap_err().message.contains("unknown"));
    }
}
