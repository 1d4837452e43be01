//! Where the engine is: `-H`, `BULKHEAD_HOST`, `DOCKER_HOST`, or the default socket.

use std::path::PathBuf;

/// Where bulkheadd serves unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/bulkhead.sock";

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the engine address {0:?}: only unix:///PATH is supported")]
pub struct UnknownAddress(String);

/// Chooses the first address that is given; each must be `unix://PATH`.
///
/// # Errors
/// [`UnknownAddress`] for another kind of address.
pub fn choose(flag: Option<&str>, environment: impl Fn(&str) -> Option<String>) -> Result<PathBuf, UnknownAddress> {
    let given = |name: &str| environment(name).filter(|value| !value.is_empty());
    let address = flag.map(str::to_owned).or_else(|| given("BULKHEAD_HOST")).or_else(|| given("DOCKER_HOST"));
    let Some(address) = address else { return Ok(DEFAULT_SOCKET.into()) };
    match address.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(UnknownAddress(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_address_wins() {
        let environment = |name: &str| match name {
            "BULKHEAD_HOST" => Some("unix:///b".to_owned()),
            "DOCKER_HOST" => Some("unix:///d".to_owned()),
            _ => None,
        };
        let docker = |name: &str| (name == "DOCKER_HOST").then(|| "unix:///d".to_owned());
        assert_eq!(choose(Some("unix:///f"), environment).unwrap(), PathBuf::from("/f"));
        assert_eq!(choose(None, environment).unwrap(), PathBuf::from("/b"));
        assert_eq!(choose(None, docker).unwrap(), PathBuf::from("/d"));
        assert_eq!(choose(None, |_| None).unwrap(), PathBuf::from(DEFAULT_SOCKET));
        for bad in ["tcp://1.2.3.4:2375", "unix://relative", "/run/x.sock", ""] {
            assert!(choose(Some(bad), |_| None).is_err(), "{bad}");
        }
    }
}
