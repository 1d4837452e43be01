//! In the helper: keeping what libcontainer logs when something goes wrong. Its errors lose their sources on the way from
//! the container's process, which only its log still names.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// How much of the log is read, bytes.
const LOG_LIMIT: u64 = 16384;

/// A file that all processes forked from this one append their errors to.
pub struct Diagnostics {
    log: Option<File>,
}

impl Diagnostics {
    /// Begins to collect. When: once, before libcontainer is called.
    pub fn install() -> Self {
        let log = open().ok();
        if let Some(copy) = log.as_ref().and_then(|log| log.try_clone().ok()) {
            // A second subscriber is refused; the first one then goes on collecting.
            let _ = tracing::subscriber::set_global_default(Collector { log: copy });
        }
        Self { log }
    }

    /// Says why it failed: what was logged, outermost first (the log begins with the innermost); without a log the text.
    pub fn explain(&mut self, text: &str) -> String {
        let mut explanation = String::new();
        for line in
            self.lines().iter().rev().filter(|line| !WRAPPINGS.iter().any(|wrapping| line.starts_with(wrapping)))
        {
            if !explanation.contains(line.as_str()) {
                let separator = if explanation.is_empty() { "" } else { ": " };
                explanation.push_str(separator);
                explanation.push_str(line);
            }
        }
        if explanation.is_empty() { text.to_owned() } else { explanation }
    }

    /// The container's first process, if libcontainer came to fork it. It is a child of the caller's, who must reap it also
    /// when the creation fails, and libcontainer tells its id nobody then.
    pub fn init(&mut self) -> Option<u32> {
        self.lines().iter().rev().find_map(|line| {
            let rest = line.strip_prefix(INIT_FORKED)?;
            rest.chars().filter(char::is_ascii_digit).collect::<String>().parse().ok()
        })
    }

    fn lines(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        if let Some(log) = &mut self.log
            && log.rewind().is_ok()
        {
            // Whatever could be read is better than nothing.
            let _ = log.take(LOG_LIMIT).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}

/// How libcontainer 0.7 logs that it has forked the container's first process.
const INIT_FORKED: &str = "sending init pid";
/// What libcontainer 0.7 logs around a cause without adding to it.
const WRAPPINGS: [&str; 6] = [
    INIT_FORKED,
    "failed to run container process",
    "failed to run intermediate process",
    "failed to wait for",
    "failed to initialize container process",
    "failed to create container",
];

fn open() -> rustix::io::Result<File> {
    let fd: OwnedFd = memfd_create("helper-log", MemfdFlags::CLOEXEC)?;
    fcntl_setfl(&fd, OFlags::APPEND)?;
    Ok(File::from(fd))
}

/// Writes each error as one line.
struct Collector {
    log: File,
}

/// Gathers an event's fields into a line.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let separator = if self.0.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value:?}"),
            name => write!(self.0, "{separator}{name}={value:?}"),
        };
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The one line below an error that is needed is in this module.
        *metadata.level() == Level::ERROR || metadata.target() == "libcontainer::process::channel"
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut text = line.0.replace('\n', " ");
        text.push('\n');
        // One write, so that lines of several processes do not mix; a log that cannot be written is no fault of the container.
        let _ = (&self.log).write_all(text.as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_cause_comes_last() {
        let mut log = open().unwrap();
        tracing::subscriber::with_default(Collector { log: log.try_clone().unwrap() }, || {
            tracing::debug!(target: "libcontainer::process::channel", "sending init pid (Pid(421))");
            tracing::error!(errno = 13, "cannot mount");
            tracing::warn!("not this");
            tracing::error!("failed to prepare rootfs");
            tracing::error!("failed to wait for init ready: failed to prepare rootfs");
        });
        log.flush().unwrap();
        let mut diagnostics = Diagnostics { log: Some(log) };
        assert_eq!(diagnostics.explain("lost"), "failed to prepare rootfs: cannot mount errno=13");
        assert_eq!(diagnostics.init(), Some(421));
        assert_eq!(Diagnostics { log: None }.explain("all there is"), "all there is");
    }
}
