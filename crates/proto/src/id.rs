//! Identifiers, validated where they enter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that is no identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} {text:?}: expected {expected}")]
pub struct InvalidId {
    /// Which identifier was asked for.
    pub kind: &'static str,
    /// What was given, cut to 100 characters.
    pub text: String,
    /// The form it should have.
    pub expected: &'static str,
}

impl InvalidId {
    fn new(kind: &'static str, text: &str, expected: &'static str) -> Self {
        Self { kind, text: text.chars().take(100).collect(), expected }
    }
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The characters containerd allows in an identifier; no separator, so that an id is always one path component.
fn is_containerd_identifier(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    text.len() <= 76 && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && text.bytes().all(valid)
}

macro_rules! text_id {
    ($name:ident, $kind:literal, $expected:literal, $check:expr, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(InvalidId::new($kind, text, $expected)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    ContainerId,
    "container id",
    "1 to 76 letters, digits, '-', '_' or '.', a letter or digit first",
    is_containerd_identifier,
    "A container's identifier. Shape: containerd's identifier syntax (the engine's own are 64 hexadecimal digits); always one path component. Source: containerd `identifiers.Validate`."
);
text_id!(
    ExecId,
    "exec id",
    "1 to 76 letters, digits, '-', '_' or '.', a letter or digit first",
    is_containerd_identifier,
    "The identifier of a further process in a container. Shape: as [`ContainerId`]."
);
text_id!(
    TemplateId,
    "template id",
    "64 lower-case hexadecimal digits",
    |text| is_lower_hex(text, 64),
    "A template's identifier: the SHA-256 of every input of the template, 64 lower-case hexadecimal digits."
);
text_id!(
    Digest,
    "digest",
    "'sha256:' and 64 lower-case hexadecimal digits",
    |text| text.strip_prefix("sha256:").is_some_and(|hex| is_lower_hex(hex, 64)),
    "The digest of a blob. Shape: `sha256:` and 64 lower-case hexadecimal digits; no other algorithm is accepted. Source: OCI image-spec, descriptor.md#digests."
);

impl Digest {
    /// The digest for the 32 bytes of a SHA-256.
    #[must_use]
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(bytes)))
    }

    /// The 64 hexadecimal digits behind `sha256:`; usable as a file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_that_name_paths_or_other_algorithms_are_refused() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().hex().len(), 64);
        for bad in
            ["", "sha256:", "sha256:../..", "md5:d41d8cd98f00b204e9800998ecf8427e", &good.to_uppercase(), &good[..70]]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_container_id_is_one_path_component() {
        for bad in ["", ".", "..", "a/b", "../x", "-x", "a\nb", &"x".repeat(77)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
        assert!("a-1_b.c".parse::<ContainerId>().is_ok());
    }
}
