//! One line of a log file.
//!
//! Source: moby `daemon/logger/jsonfilelog/jsonlog`.

use serde::Deserialize;

use crate::clock::Timestamp;
use crate::output::Source;

/// One line (or a part of a long one) as it was written by the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The text, with its line feed unless the line goes on.
    pub text: String,
    /// Where it came from.
    pub source: Source,
    /// When the engine read it.
    pub at: Timestamp,
}

#[derive(Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
}

impl Entry {
    /// Reads a line of the file; none for one that was cut off or damaged.
    #[must_use]
    pub fn decode(line: &[u8]) -> Option<Self> {
        let line: Line = serde_json::from_slice(line).ok()?;
        let source = if line.stream == "stderr" { Source::Stderr } else { Source::Stdout };
        Some(Self { text: line.log, source, at: Timestamp::parse_rfc3339(&line.time)? })
    }

    /// The line ends here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.text.ends_with('\n')
    }
}

/// Appends one line of the file. `time` is RFC 3339.
pub fn encode(file: &mut Vec<u8>, text: &[u8], source: Source, time: &str) {
    file.extend_from_slice(b"{\"log\":\"");
    escape(file, text);
    file.extend_from_slice(b"\",\"stream\":\"");
    file.extend_from_slice(match source {
        Source::Stdout => b"stdout",
        Source::Stderr => b"stderr",
    });
    file.extend_from_slice(b"\",\"time\":\"");
    file.extend_from_slice(time.as_bytes());
    file.extend_from_slice(b"\"}\n");
}

/// Bytes below 0x80 that cannot stand in a JSON text as they are.
const ESCAPED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table
};

/// Writes bytes as the inside of a JSON text; what is no UTF-8 becomes U+FFFD, as in Docker.
fn escape(file: &mut Vec<u8>, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return escape_text(file, text.as_bytes());
    }
    for piece in bytes.utf8_chunks() {
        escape_text(file, piece.valid().as_bytes());
        piece.invalid().iter().for_each(|_| file.extend_from_slice(b"\\ufffd"));
    }
}

fn escape_text(file: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| ESCAPED[usize::from(*byte)]) {
        file.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => file.extend_from_slice(b"\\n"),
            b'\r' => file.extend_from_slice(b"\\r"),
            b'\t' => file.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => file.extend_from_slice(&[b'\\', byte]),
            byte => file.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = &rest[at + 1..];
    }
    file.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_file() {
        for text in ["plain\n", "", "\"quoted\" \\ tab\t\r\n", "\u{1}\u{1f}\u{7f}", "käse 🧀\n"] {
            let mut file = Vec::new();
            encode(&mut file, text.as_bytes(), Source::Stderr, "2026-11-22T20:00:00.5Z");
            assert_eq!(file.last(), Some(&b'\n'));
            assert_eq!(file.iter().filter(|byte| **byte == b'\n').count(), 1, "{text:?}");
            let entry = Entry::decode(&file).unwrap();
            assert_eq!((entry.text.as_str(), entry.source), (text, Source::Stderr));
            assert_eq!(entry.at.to_rfc3339_nano(), "2026-11-22T20:00:00.5Z");
        }
    }

    #[test]
    fn the_file_is_what_docker_writes() {
        let mut file = Vec::new();
        encode(&mut file, b"hi\n", Source::Stdout, "2026-11-22T20:00:00Z");
        assert_eq!(file, b"{\"log\":\"hi\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-22T20:00:00Z\"}\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut file = Vec::new();
        encode(&mut file, b"a\xffb\xc3", Source::Stdout, "2026-11-22T20:00:00Z");
        assert_eq!(Entry::decode(&file).unwrap().text, "a\u{fffd}b\u{fffd}");
        assert_eq!(Entry::decode(&file[..10]), None);
    }
}
