//! The `--log-driver` and `--log-opt` of a container.

use std::collections::BTreeMap;

/// What is wrong with a container's log configuration. The texts are dockerd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogOptionsError {
    /// No such driver exists.
    #[error("logger: no log driver named '{0}' is registered")]
    UnknownDriver(String),
    /// Docker has it; this engine does not yet.
    #[error("log driver '{0}' is not supported by this version of Bulkhead; choose json-file, local or none")]
    MissingDriver(String),
    /// An option that the driver does not have.
    #[error("{}", unknown_option(option, driver))]
    UnknownOption {
        /// The option.
        option: String,
        /// The driver.
        driver: &'static str,
    },
    /// A way of handing over output that nobody knows.
    #[error("logger: logging mode not supported: {0}")]
    Mode(String),
    /// A value that cannot be read or used.
    #[error("invalid value for '{option}': {value}")]
    InvalidValue {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
}

/// The two drivers say it in different words.
fn unknown_option(option: &str, driver: &str) -> String {
    match driver {
        "local" => format!("unknown log opt '{option}' for log-driver local"),
        _ => format!("unknown log opt '{option}' for {driver} log driver"),
    }
}

impl LogOptionsError {
    /// What a client can do about it.
    #[must_use]
    pub fn kind(&self) -> proto::ErrorKind {
        match self {
            Self::MissingDriver(_) => proto::ErrorKind::NotImplemented,
            Self::UnknownDriver(_) | Self::UnknownOption { .. } | Self::Mode(_) | Self::InvalidValue { .. } => {
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

/// How an entry is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Docker's `json-file`.
    Json,
    /// Our `local`.
    Local,
}

impl LogFormat {
    /// The driver's name.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::Json => "json-file",
            Self::Local => "local",
        }
    }
}

/// How a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// How an entry is written.
    pub format: LogFormat,
    /// A file that has this many bytes or more is rotated.
    pub max_bytes: Option<u64>,
    /// How many files there may be, the one that is written included; at least 1.
    pub max_files: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { format: LogFormat::Json, max_bytes: Some(DEFAULT_MAX_BYTES), max_files: DEFAULT_MAX_FILES }
    }
}

/// Bytes: a file's size when nothing is said. Source: Docker's `local` driver; its `json-file` would grow for ever.
const DEFAULT_MAX_BYTES: u64 = 20 << 20;
/// How many files there are when nothing is said. Source: as [`DEFAULT_MAX_BYTES`].
const DEFAULT_MAX_FILES: u64 = 5;

/// Options that say nothing about how much is kept, and the drivers that have them.
const OTHER_OPTIONS: &[(&str, &[&str])] = &[
    ("json-file", &["labels", "labels-regex", "env", "env-regex", "compress", "tag", "mode", "max-buffer-size"]),
    ("local", &["compress", "mode", "max-buffer-size"]),
];
/// Docker's drivers that are not there.
const MISSING_DRIVERS: &[&str] =
    &["journald", "syslog", "gelf", "fluentd", "awslogs", "splunk", "gcplogs", "logentries", "etwlogs"];

impl LogOptions {
    /// Reads a container's `LogConfig`; none for the driver `none`.
    ///
    /// Shape: without `max-size` and `max-file` five files of 20 MiB are kept; with `max-size` alone one file, as in Docker;
    /// `max-size=-1` keeps everything.
    ///
    /// # Errors
    /// [`LogOptionsError`], in dockerd's words.
    pub fn parse(driver: &str, options: &BTreeMap<String, String>) -> Result<Option<Self>, LogOptionsError> {
        let format = match driver {
            "none" => return Ok(None),
            "" | "json-file" => LogFormat::Json,
            "local" => LogFormat::Local,
            other if MISSING_DRIVERS.contains(&other) => return Err(LogOptionsError::MissingDriver(other.to_owned())),
            other => return Err(LogOptionsError::UnknownDriver(other.to_owned())),
        };
        let mut parsed = Self { format, ..Self::default() };
        let mut files = None;
        for (option, value) in options {
            match option.as_str() {
                "max-size" if value == "-1" => parsed.max_bytes = None,
                "max-size" => parsed.max_bytes = Some(parse_size(value).ok_or_else(|| invalid("max-size", value))?),
                "max-file" => {
                    let number = value.parse().ok().filter(|files| (1..=1000).contains(files));
                    files = Some(number.ok_or_else(|| invalid("max-file", value))?);
                }
                other => check_other(format, other, value)?,
            }
        }
        let one = format == LogFormat::Json && options.contains_key("max-size");
        parsed.max_files = files.unwrap_or(if one { 1 } else { DEFAULT_MAX_FILES });
        if parsed.max_bytes.is_none() && files.is_some_and(|files| files > 1) {
            return Err(LogOptionsError::InvalidValue {
                option: "max-file",
                value: "max-file cannot be specified without max-size".to_owned(),
            });
        }
        Ok(Some(parsed))
    }
}

fn check_other(format: LogFormat, option: &str, value: &str) -> Result<(), LogOptionsError> {
    let driver = format.driver();
    let known = OTHER_OPTIONS.iter().any(|(of, options)| *of == driver && options.contains(&option));
    match option {
        _ if !known => Err(LogOptionsError::UnknownOption { option: option.to_owned(), driver }),
        "mode" if !matches!(value, "" | "blocking" | "non-blocking") => Err(LogOptionsError::Mode(value.to_owned())),
        "compress" if !matches!(value, "true" | "false" | "1" | "0") => Err(invalid("compress", value)),
        _ => Ok(()),
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
        assert_eq!(some, Ok(Some(LogOptions { format: LogFormat::Json, max_bytes: Some(10 << 20), max_files: 3 })));
        for (driver, options, bytes, files) in [
            ("json-file", &[][..], Some(20 << 20), 5),
            ("json-file", &[("max-size", "1k")], Some(1024), 1),
            ("json-file", &[("max-file", "2")], Some(20 << 20), 2),
            ("json-file", &[("max-size", "-1")], None, 1),
            ("local", &[("max-size", "1k"), ("compress", "true")], Some(1024), 5),
        ] {
            let parsed = parse(driver, options).unwrap().unwrap();
            assert_eq!((parsed.format.driver(), parsed.max_bytes, parsed.max_files), (driver, bytes, files));
        }
    }

    #[test]
    fn what_is_wrong_is_named_as_dockerd_does() {
        for (driver, options, text) in [
            ("nosuch", &[][..], "logger: no log driver named 'nosuch' is registered"),
            ("json-file", &[("max", "1")], "unknown log opt 'max' for json-file log driver"),
            ("json-file", &[("max-size", "x")], "invalid value for 'max-size': x"),
            ("json-file", &[("max-file", "2"), ("max-size", "-1")], "max-file cannot be specified without max-size"),
            ("local", &[("labels", "x")], "unknown log opt 'labels' for log-driver local"),
            ("local", &[("mode", "odd")], "logger: logging mode not supported: odd"),
            ("syslog", &[], "not supported by this version"),
        ] {
            let error = parse(driver, options).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
