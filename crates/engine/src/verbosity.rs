//! How much the engine's own log says, which a reload may change.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::flags::{Flags, LogLevel};

/// A filter of `tracing_subscriber` that overrides the level.
const VARIABLE: &str = "BULKHEAD_LOG";

/// The log's level, which can be changed.
pub struct Verbosity {
    change: Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>,
}

impl Verbosity {
    /// Sends the log to standard error at the level asked for; `BULKHEAD_LOG` overrides it. When: once.
    #[must_use]
    pub fn install(flags: &Flags) -> Self {
        let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| filter(flags));
        let colours = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
        let log = log.with_filter_reloading();
        let handle = log.reload_handle();
        log.init();
        Self { change: Box::new(move |filter| handle.reload(filter)) }
    }

    /// Takes another level over.
    pub fn follow(&self, flags: &Flags) {
        if std::env::var_os(VARIABLE).is_none()
            && let Err(error) = (self.change)(filter(flags))
        {
            tracing::warn!(%error, "cannot change the log's level");
        }
    }
}

fn filter(flags: &Flags) -> EnvFilter {
    let level = match flags.log_level {
        _ if flags.debug => "debug",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error | LogLevel::Fatal => "error",
    };
    EnvFilter::new(format!("warn,bulkheadd={level},bulkhead_image={level}"))
}
