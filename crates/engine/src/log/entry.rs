//! One line of a log file, in one of two formats.
//!
//! `json-file`: Docker's, source: moby `daemon/logger/jsonfilelog/jsonlog`. `local`: our own, a third of its size and never
//! escaped: `o` or `e` for the source, 16 hexadecimal digits for the nanoseconds since the epoch, a space, the text. The
//! capital letters `O` and `E` say that the line goes on in the next entry.

use serde::Deserialize;

use super::options::LogFormat;
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
    pub fn decode(format: LogFormat, line: &[u8]) -> Option<Self> {
        match format {
            LogFormat::Json => Self::decode_json(line),
            LogFormat::Local => Self::decode_local(line),
        }
    }

    fn decode_local(line: &[u8]) -> Option<Self> {
        let (mark, rest) = line.strip_suffix(b"\n")?.split_first()?;
        let (source, ends) = match mark {
            b'o' => (Source::Stdout, "\n"),
            b'e' => (Source::Stderr, "\n"),
            b'O' => (Source::Stdout, ""),
            b'E' => (Source::Stderr, ""),
            _ => return None,
        };
        let (time, text) = rest.split_at_checked(TIME_DIGITS)?;
        let nanos = u64::from_str_radix(std::str::from_utf8(time).ok()?, 16).ok()?;
        let text = String::from_utf8_lossy(text.strip_prefix(b" ")?).into_owned() + ends;
        Some(Self { text, source, at: Timestamp(i64::try_from(nanos).ok()?) })
    }

    fn decode_json(line: &[u8]) -> Option<Self> {
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

/// Hexadecimal digits of a time in the local format.
const TIME_DIGITS: usize = 16;

/// What is the same in every line of one source and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What a line ends with.
    Json(Vec<u8>),
    /// What a line begins with.
    Local(Vec<u8>),
}

impl Frame {
    /// For output that was read at that time.
    #[must_use]
    pub fn new(format: LogFormat, source: Source, at: Timestamp) -> Self {
        match (format, source) {
            (LogFormat::Json, Source::Stdout) => {
                Self::Json(format!("\",\"stream\":\"stdout\",\"time\":\"{at}\"}}\n").into_bytes())
            }
            (LogFormat::Json, Source::Stderr) => {
                Self::Json(format!("\",\"stream\":\"stderr\",\"time\":\"{at}\"}}\n").into_bytes())
            }
            (LogFormat::Local, Source::Stdout) => Self::Local(format!("o{:016x} ", at.0).into_bytes()),
            (LogFormat::Local, Source::Stderr) => Self::Local(format!("e{:016x} ", at.0).into_bytes()),
        }
    }
}

/// Appends one line of the file. Shape: `text` has a line feed at its end or none.
pub fn encode(file: &mut Vec<u8>, text: &[u8], frame: &Frame) {
    match frame {
        Frame::Json(end) => {
            file.extend_from_slice(b"{\"log\":\"");
            escape(file, text);
            file.extend_from_slice(end);
        }
        Frame::Local(begin) => {
            let at = file.len();
            file.extend_from_slice(begin);
            file.extend_from_slice(text);
            if !text.ends_with(b"\n") {
                file[at].make_ascii_uppercase();
                file.push(b'\n');
            }
        }
    }
}

/// Writes bytes as the inside of a JSON text; each byte that is no UTF-8 becomes U+FFFD, as in Docker.
fn escape(file: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(_) => escape_text(file, bytes),
        Err(_) => escape_binary(file, bytes),
    }
}

/// What a byte becomes in a JSON text, and how many bytes of it count.
#[derive(Clone, Copy)]
struct Escaped {
    text: [u8; Escaped::ROOM],
    length: u8,
}

impl Escaped {
    /// A byte becomes up to six; eight are written, since that is one store.
    const ROOM: usize = 8;
}

const ESCAPED: [Escaped; 256] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut table = [Escaped { text: *b"\\ufffd  ", length: 6 }; 256];
    let mut byte: u8 = 0;
    while byte < 0x80 {
        table[byte as usize] = match byte {
            b'\n' => Escaped { text: *b"\\n      ", length: 2 },
            b'\r' => Escaped { text: *b"\\r      ", length: 2 },
            b'\t' => Escaped { text: *b"\\t      ", length: 2 },
            b'"' => Escaped { text: *b"\\\"      ", length: 2 },
            b'\\' => Escaped { text: *b"\\\\      ", length: 2 },
            0..0x20 => {
                let (high, low) = (HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]);
                Escaped { text: [b'\\', b'u', b'0', b'0', high, low, b' ', b' '], length: 6 }
            }
            _ => Escaped { text: [byte, b' ', b' ', b' ', b' ', b' ', b' ', b' '], length: 1 },
        };
        byte += 1;
    }
    table
};

/// Text is copied in runs, between the few bytes that are escaped. Shape: `text` is UTF-8.
fn escape_text(file: &mut Vec<u8>, text: &[u8]) {
    let is_plain = |byte: &u8| *byte >= 0x80 || ESCAPED[usize::from(*byte)].length == 1;
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| !is_plain(byte)) {
        let escaped = &ESCAPED[usize::from(rest[at])];
        file.extend_from_slice(&rest[..at]);
        file.extend_from_slice(&escaped.text[..usize::from(escaped.length)]);
        rest = &rest[at + 1..];
    }
    file.extend_from_slice(rest);
}

/// What is no text has no runs worth the name: each byte is looked up and stored, almost without a branch.
fn escape_binary(file: &mut Vec<u8>, bytes: &[u8]) {
    let mut end = file.len();
    file.resize(end + bytes.len() * 6 + Escaped::ROOM, 0);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let length = if (0xC2..0xF5).contains(byte) { character_length(&bytes[at..]) } else { 0 };
        if length > 0 {
            file[end..end + length].copy_from_slice(&bytes[at..at + length]);
            end += length;
            at += length;
            continue;
        }
        let escaped = &ESCAPED[usize::from(*byte)];
        file[end..end + Escaped::ROOM].copy_from_slice(&escaped.text);
        end += usize::from(escaped.length);
        at += 1;
    }
    file.truncate(end);
}

/// Length of the character of several bytes with which `bytes` begin; zero when they begin with none.
fn character_length(bytes: &[u8]) -> usize {
    let length = match bytes[0] {
        0..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
    };
    let character = bytes.get(..length).filter(|bytes| bytes[1] & 0xC0 == 0x80);
    if character.is_some_and(|character| std::str::from_utf8(character).is_ok()) { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_file() {
        let texts = ["plain\n", "", "\"quoted\" \\ tab\t\r\n", "\u{1}\u{1f}\u{7f}", "käse 🧀\n"];
        for (text, format) in texts.into_iter().flat_map(|text| [(text, LogFormat::Json), (text, LogFormat::Local)]) {
            let mut file = Vec::new();
            encode(&mut file, text.as_bytes(), &Frame::new(format, Source::Stderr, Timestamp(1_500_000_000)));
            assert_eq!(file.last(), Some(&b'\n'));
            assert_eq!(file.iter().filter(|byte| **byte == b'\n').count(), 1, "{text:?}");
            let entry = Entry::decode(format, &file).unwrap();
            assert_eq!((entry.text.as_str(), entry.source), (text, Source::Stderr));
            assert_eq!(entry.at, Timestamp(1_500_000_000));
        }
    }

    #[test]
    fn the_file_is_what_docker_writes() {
        let mut file = Vec::new();
        encode(&mut file, b"hi\n", &Frame::new(LogFormat::Json, Source::Stdout, Timestamp(0)));
        assert_eq!(file, b"{\"log\":\"hi\\n\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:00Z\"}\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        for (bytes, text) in [
            (&b"a\xffb\xc3"[..], "a\u{fffd}b\u{fffd}"),
            (b"\xe2\x82", "\u{fffd}\u{fffd}"),
            (b"\xc0\x80\xf5", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xed\xa0\x80x", "\u{fffd}\u{fffd}\u{fffd}x"),
            ("\u{10ffff}\u{7ff}\u{800}".as_bytes(), "\u{10ffff}\u{7ff}\u{800}"),
        ] {
            let mut file = Vec::new();
            encode(&mut file, bytes, &Frame::new(LogFormat::Json, Source::Stdout, Timestamp(0)));
            assert_eq!(Entry::decode(LogFormat::Json, &file).unwrap().text, text);
        }
        assert_eq!(Entry::decode(LogFormat::Json, b"{\"log\":"), None);
        for broken in [&b"o00"[..], b"x0000000000000000 a\n", b"o000000000000000g a\n", b"o0000000000000000a\n", b"\n"]
        {
            assert_eq!(Entry::decode(LogFormat::Local, broken), None);
        }
    }
}
