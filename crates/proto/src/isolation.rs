//! The wall around a container.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a container is kept apart from the host, decided when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Shares the host's kernel: namespaces, cgroups, capabilities, seccomp.
    Process,
    /// In a utility VM of its own, with a kernel of its own.
    Hyperv,
}

/// A word that names no isolation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid isolation {0:?}: choose 'default', 'process' or 'hyperv'")]
pub struct UnknownIsolation(pub String);

impl Isolation {
    /// Decides from what the client sent in `HostConfig.Isolation` and the daemon's default.
    ///
    /// Shape: an empty word and `default` mean `default`; words are compared without regard to case, since the
    /// docker CLI sends them as typed.
    ///
    /// # Errors
    /// [`UnknownIsolation`] for any other word: a wall is never chosen by guessing.
    pub fn choose(word: &str, default: Self) -> Result<Self, UnknownIsolation> {
        if word.is_empty() || word.eq_ignore_ascii_case("default") { Ok(default) } else { word.parse() }
    }

    /// The word as the Engine API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Hyperv => "hyperv",
        }
    }
}

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(word: &str) -> Result<Self, UnknownIsolation> {
        match word.to_ascii_lowercase().as_str() {
            "process" => Ok(Self::Process),
            "hyperv" => Ok(Self::Hyperv),
            _ => Err(UnknownIsolation(word.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_words_are_taken() {
        assert_eq!(Isolation::choose("", Isolation::Hyperv), Ok(Isolation::Hyperv));
        assert_eq!(Isolation::choose("Default", Isolation::Process), Ok(Isolation::Process));
        assert_eq!(Isolation::choose("HyperV", Isolation::Process), Ok(Isolation::Hyperv));
        assert_eq!(Isolation::choose("PROCESS", Isolation::Hyperv), Ok(Isolation::Process));
        for bad in ["vm", "hyper-v", " process", "process,hyperv"] {
            assert!(Isolation::choose(bad, Isolation::Process).is_err(), "{bad}");
        }
    }
}
