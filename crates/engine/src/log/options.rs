//! The `--log-driver` and `--log-opt` of a container.

use std::collections::BTreeMap;

/// What is wrong with a container's log configuration. The texts are dockerd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogOptionsError {
    /// No such driver exists.
    #[error("logger: no log driver named '{0}' is registered")]
    UnknownDriver(String),
    /// Docker has it; this engine does not yet.
    #[error("log driver '{0}' is not supported by this version of Bulkhead; choose json-file or none")]
    MissingDriver(String),
    /// An option that the driver does not have.
    #[error("unknown log opt '{option}' for {driver} log driver")]
    UnknownOption {
        /// The option.
        option: String,
        /// The driver.
        driver: &'static str,
    },
    /// A value that cannot be read or used.
    #[error("invalid value for '{option}': {value}")]
    InvalidValue {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
}

impl LogOptionsError {
    /// What a client can do about it.
    #[must_use]
    pub fn kind(&self) -> proto::ErrorKind {
        match self {
            Self::MissingDriver(_) => proto::ErrorKind::NotImplemented,
            Self::UnknownDriver(_) | Self::UnknownOption { .. } | Self::InvalidValue { .. } => {
                proto::ErrorKind::InvalidArgument
            }
        }
    }
}

impl From<LogOptionsError> for crate::error::ApiError {
    fn from(error: LogOptionsError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// How a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// A file that has this many bytes or more is rotated.
    pub max_bytes: Option<u64>,
    /// How many files there may be, the one that is written included; at least 1.
    pub max_files: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { max_bytes: None, max_files: 1 }
    }
}

/// Options of json-file that say nothing about how much is kept.
const OTHER_OPTIONS: &[&str] =
    &["labels", "labels-regex", "env", "env-regex", "compress", "tag", "mode", "max-buffer-size"];
/// Docker's drivers that are not there.
const MISSING_DRIVERS: &[&str] =
    &["local", "journald", "syslog", "gelf", "fluentd", "awslogs", "splunk", "gcplogs", "etwlogs"];

impl LogOptions {
    /// Reads a container's `LogConfig`; none for the driver `none`.
    ///
    /// # Errors
    /// [`LogOptionsError`], in dockerd's words.
    pub fn parse(driver: &str, options: &BTreeMap<String, String>) -> Result<Option<Self>, LogOptionsError> {
        match driver {
            "none" => return Ok(None),
            "" | "json-file" => {}
            other if MISSING_DRIVERS.contains(&other) => return Err(LogOptionsError::MissingDriver(other.to_owned())),
            other => return Err(LogOptionsError::UnknownDriver(other.to_owned())),
        }
        let mut parsed = Self::default();
        for (option, value) in options {
            match option.as_str() {
                "max-size" if value == "-1" => {}
                "max-size" => parsed.max_bytes = Some(parse_size(value).ok_or_else(|| invalid("max-size", value))?),
                "max-file" => {
                    let files = value.parse().ok().filter(|files| (1..=1000).contains(files));
                    parsed.max_files = files.ok_or_else(|| invalid("max-file", value))?;
                }
                other if OTHER_OPTIONS.contains(&other) => {}
                other => {
                    return Err(LogOptionsError::UnknownOption { option: other.to_owned(), driver: "json-file" });
                }
            }
        }
        if parsed.max_files > 1 && parsed.max_bytes.is_none() {
            return Err(LogOptionsError::InvalidValue {
                option: "max-file",
                value: "max-file cannot be specified without max-size".to_owned(),
            });
        }
        Ok(Some(parsed))
    }
}

fn invalid(option: &'static str, value: &str) -> LogOptionsError {
    LogOptionsError::InvalidValue { option, value: value.to_owned() }
}

/// Reads `10`, `10k`, `10m`, `1g`, also with a `b` behind, in units of 1024; none for anything else and for zero.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, factor) = match number.as_bytes().last()? {
        b'k' => (&number[..number.len() - 1], 1 << 10),
        b'm' => (&number[..number.len() - 1], 1 << 20),
        b'g' => (&number[..number.len() - 1], 1 << 30),
        b't' => (&number[..number.len() - 1], 1 << 40),
        _ => (number, 1),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(driver: &str, options: &[(&str, &str)]) -> Result<Option<LogOptions>, LogOptionsError> {
        let map = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        LogOptions::parse(driver, &map)
    }

    #[test]
    fn options_of_json_file_are_read() {
        assert_eq!(parse("", &[]), Ok(Some(LogOptions::default())));
        assert_eq!(parse("none", &[]), Ok(None));
        let some = parse("json-file", &[("max-size", "10m"), ("max-file", "3"), ("labels", "a")]);
        assert_eq!(some, Ok(Some(LogOptions { max_bytes: Some(10 << 20), max_files: 3 })));
    }

    #[test]
    fn what_is_wrong_is_named_as_dockerd_does() {
        for (driver, options, text) in [
            ("nosuch", &[][..], "logger: no log driver named 'nosuch' is registered"),
            ("json-file", &[("max", "1")], "unknown log opt 'max' for json-file log driver"),
            ("json-file", &[("max-size", "x")], "invalid value for 'max-size': x"),
            ("json-file", &[("max-file", "2")], "max-file cannot be specified without max-size"),
            ("syslog", &[], "not supported by this version"),
        ] {
            let error = parse(driver, options).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
