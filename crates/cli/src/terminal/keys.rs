//! Detach keys: a sequence typed on the terminal that leaves the container running.

use crate::error::CliError;

/// What is used unless `--detach-keys` or the user's configuration says otherwise.
const DEFAULT: &str = "ctrl-p,ctrl-q";

/// The keys that are wanted, or the default ones.
///
/// # Errors
/// As [`parse`].
pub fn wanted(text: Option<&str>) -> Result<Vec<u8>, CliError> {
    parse(text.unwrap_or(DEFAULT))
}

/// Reads a list such as `ctrl-p,ctrl-q` or `ctrl-a,d` into bytes.
///
/// # Errors
/// [`CliError::Usage`] for a key that has no byte.
fn parse(text: &str) -> Result<Vec<u8>, CliError> {
    let key = |key: &str| -> Option<u8> {
        let Some(with_control) = key.strip_prefix("ctrl-") else {
            return (key.len() == 1).then(|| key.as_bytes()[0]);
        };
        let [byte] = with_control.as_bytes() else { return None };
        match byte {
            b'@' => Some(0),
            b'a'..=b'z' => Some(byte - b'a' + 1),
            b'[' => Some(27),
            b'\\' => Some(28),
            b']' => Some(29),
            b'^' => Some(30),
            b'_' => Some(31),
            _ => None,
        }
    };
    let keys = text.split(',').filter(|key| !key.is_empty());
    keys.map(|name| key(name).ok_or_else(|| CliError::Usage(format!("invalid detach keys: unknown key {name:?}"))))
        .collect()
}

/// Looks for the sequence in what is typed. Shape: bytes that may begin the sequence are held back until it is clear.
#[derive(Debug, Clone)]
pub struct Detector {
    sequence: Vec<u8>,
    matched: usize,
}

impl Detector {
    /// Looks for a sequence; an empty one is never found.
    #[must_use]
    pub fn new(sequence: Vec<u8>) -> Self {
        Self { sequence, matched: 0 }
    }

    /// Takes what was typed. Gives the bytes for the container, and true if the sequence is complete.
    pub fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.sequence.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.sequence.len() {
                    self.matched = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.sequence[..self.matched]);
            self.matched = usize::from(self.sequence.first() == Some(byte));
            match self.matched {
                1 if self.sequence.len() == 1 => return (passed, true),
                1 => {}
                _ => passed.push(*byte),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_bytes() {
        assert_eq!(parse(DEFAULT).unwrap(), [16, 17]);
        assert_eq!(parse("ctrl-a,d,ctrl-@,ctrl-_").unwrap(), [1, b'd', 0, 31]);
        assert!(parse("").unwrap().is_empty());
        for bad in ["ctrl-", "ctrl-A", "ctrl-1", "ab", "ctrl-p,shift-q"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_sequence_is_found_across_reads_and_nothing_is_lost() {
        let mut detector = Detector::new(vec![16, 17]);
        assert_eq!(detector.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(detector.feed(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(detector.feed(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(detector.feed(b"\x11more"), (Vec::new(), true));
        assert_eq!(Detector::new(Vec::new()).feed(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert_eq!(Detector::new(vec![1]).feed(b"x\x01y"), (b"x".to_vec(), true));
    }
}
