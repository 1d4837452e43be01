//! The version prefix of a request's path.

use crate::error::ApiError;

/// The newest API version served, and what the engine answers by default.
pub const MAX: ApiVersion = ApiVersion { major: 1, minor: 51 };
/// The oldest API version served.
pub const MIN: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// A version of the Engine API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    /// `major.minor`.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Splits `/v1.47/containers/json` into the version and the path behind it; a path without a version is served
    /// as [`MAX`].
    ///
    /// # Errors
    /// 400, in dockerd's words, for a version that is too new or too old.
    pub fn split(path: &str) -> Result<(Self, &str), ApiError> {
        let Some((version, rest)) = Self::prefix(path) else { return Ok((MAX, path)) };
        if version > MAX {
            return Err(ApiError::invalid(format!(
                "client version {version} is too new. Maximum supported API version is {MAX}"
            )));
        }
        if version < MIN {
            return Err(ApiError::invalid(format!(
                "client version {version} is too old. Minimum supported API version is {MIN}, please upgrade your client to a newer version"
            )));
        }
        Ok((version, rest))
    }

    fn prefix(path: &str) -> Option<(Self, &str)> {
        let rest = path.strip_prefix("/v")?;
        let (version, _) = rest.split_once('/')?;
        let (major, minor) = version.split_once('.')?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(major) || !digits(minor) {
            return None;
        }
        let number = |text: &str| text.parse().unwrap_or(u16::MAX);
        Some((Self { major: number(major), minor: number(minor) }, &rest[version.len()..]))
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_split_off_and_bounded() {
        assert_eq!(ApiVersion::split("/v1.47/info"), Ok((ApiVersion::new(1, 47), "/info")));
        assert_eq!(ApiVersion::split("/info"), Ok((MAX, "/info")));
        assert_eq!(ApiVersion::split("/volumes/x"), Ok((MAX, "/volumes/x")));
        assert_eq!(ApiVersion::split("/v1.x/info"), Ok((MAX, "/v1.x/info")));
        let too_new = ApiVersion::split("/v999.9/info").unwrap_err();
        assert_eq!(too_new.message, "client version 999.9 is too new. Maximum supported API version is 1.51");
        assert!(ApiVersion::split("/v1.23/info").unwrap_err().message.contains("is too old"));
        assert!(ApiVersion::split("/v1.99999999/info").is_err());
    }
}
