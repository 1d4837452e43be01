//! The guest's log: the kernel's own ring, so that it stands between the kernel's messages on the console, and the kernel
//! bounds and rate-limits it.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The kernel refuses longer records. Source: Linux kernel/printk/internal.h, `PRINTKRB_RECORD_MAX` less its prefix.
const RECORD_BYTES: usize = 900;

/// Sends events of level info and above to the kernel's log; spans are not kept.
pub struct KernelLog {
    device: File,
}

impl KernelLog {
    /// Makes it the process's log. Called once, when `/dev` is there.
    ///
    /// # Errors
    /// When `/dev/kmsg` cannot be opened.
    pub fn install() -> std::io::Result<()> {
        let device = File::options().write(true).open("/dev/kmsg")?;
        // A second call would be a fault of ours, and the first log goes on.
        tracing::subscriber::set_global_default(Self { device }).map_err(std::io::Error::other)
    }
}

impl Subscriber for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::new(*event.metadata().level());
        event.record(&mut line);
        // Nobody is left to tell when the kernel takes no message.
        let _ = (&self.device).write_all(line.finish());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// One record: priority, our name, the message, then the other fields.
struct Line(String);

impl Line {
    fn new(level: Level) -> Self {
        // Numbers of syslog(3).
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            _ => 6,
        };
        Self(format!("<{priority}>bulkhead-guest:"))
    }

    fn finish(&mut self) -> &[u8] {
        let end = (0..=self.0.len().min(RECORD_BYTES)).rev().find(|end| self.0.is_char_boundary(*end));
        self.0.truncate(end.unwrap_or_default());
        self.0.as_bytes()
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_record_is_cut_at_a_character() {
        let mut line = Line::new(Level::WARN);
        line.0.push_str(&"ä".repeat(1000));
        let bytes = line.finish().to_vec();
        assert!(bytes.len() <= RECORD_BYTES && bytes.len() > RECORD_BYTES - 4);
        assert!(String::from_utf8(bytes).unwrap().starts_with("<4>bulkhead-guest:ää"));
    }
}
