//! Names of images, in Docker's notation.

use std::fmt;
use std::str::FromStr;

use proto::{Digest, ErrorKind};

const DEFAULT_DOMAIN: &str = "docker.io";
/// What very old clients wrote instead of [`DEFAULT_DOMAIN`].
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Bytes of domain and path together. Source: distribution/reference, `NameTotalLengthMax`.
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// The text breaks the grammar.
    #[error("invalid reference format: {text:?}")]
    Format {
        /// What was given, cut to 300 characters.
        text: String,
    },
    /// The repository has upper-case letters.
    #[error("invalid reference format: repository name ({text}) must be lowercase")]
    Uppercase {
        /// What was given.
        text: String,
    },
    /// The repository is longer than 255 bytes.
    #[error("invalid reference format: repository name must not be more than {MAX_REPOSITORY_BYTES} characters")]
    TooLong,
    /// 64 hexadecimal digits would be taken for an image's id.
    #[error("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId {
        /// What was given.
        text: String,
    },
}

impl InvalidReference {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }

    fn format(text: &str) -> Self {
        Self::Format { text: text.chars().take(300).collect() }
    }
}

/// A repository with a tag, a digest, or both. Shape: `domain/path:tag@digest`; where the text had no domain it is
/// `docker.io`, where it had neither tag nor digest the tag is `latest`. [`fmt::Display`] gives this full form,
/// [`Reference::familiar`] the short one. Source: github.com/distribution/reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Domain and path, such as `docker.io/library/busybox`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The registry, such as `docker.io` or `localhost:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository below its registry, such as `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest's digest, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The short form of the repository, such as `busybox`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        match (self.domain.as_str(), self.path.strip_prefix(OFFICIAL_PREFIX)) {
            (DEFAULT_DOMAIN, Some(official)) if !official.contains('/') => official.to_owned(),
            (DEFAULT_DOMAIN, _) => self.path.clone(),
            _ => self.repository(),
        }
    }

    /// The short form, as `docker images` and `docker ps` print it: `busybox:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    /// The same repository with this tag and no digest.
    ///
    /// # Errors
    /// [`InvalidReference::Format`]: `tag` is no tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, InvalidReference> {
        if !is_tag(tag) {
            return Err(InvalidReference::format(tag));
        }
        Ok(Self { domain: self.domain.clone(), path: self.path.clone(), tag: Some(tag.to_owned()), digest: None })
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if is_bare_id(text) {
            return Err(InvalidReference::LooksLikeId { text: text.to_owned() });
        }
        let malformed = || InvalidReference::format(text);
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|_| malformed())?)),
            None => (text, None),
        };
        let (domain, rest) = split_domain(name);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidReference::Uppercase { text: text.chars().take(300).collect() });
        }
        let path = match (domain, path.contains('/')) {
            (DEFAULT_DOMAIN, false) => format!("{OFFICIAL_PREFIX}{path}"),
            _ => path.to_owned(),
        };
        if !is_domain(domain) || !path.split('/').all(is_path_component) || !tag.is_none_or(is_tag) {
            return Err(malformed());
        }
        if domain.len() + 1 + path.len() > MAX_REPOSITORY_BYTES {
            return Err(InvalidReference::TooLong);
        }
        let tag = tag.or((digest.is_none()).then_some(DEFAULT_TAG)).map(ToOwned::to_owned);
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }
}

/// True for 64 hexadecimal digits: always an id, never a name.
fn is_bare_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Splits the registry off; a first component without dot, colon, upper case and not `localhost` is part of the path.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == LEGACY_DOMAIN { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            (None, port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .split(|b| alphanumeric(*b))
            .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

/// `[\w][\w.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_and_shortened() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("Quay/app", "Quay/app:latest", "Quay/app:latest"),
            ("a__b-c--d.e_f", "docker.io/library/a__b-c--d.e_f:latest", "a__b-c--d.e_f:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar), "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
        let pinned: Reference = format!("busybox@{digest}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.familiar()), (None, format!("busybox@{digest}")));
        let both: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.digest().map(Digest::as_str)), (Some("1"), Some(digest.as_str())));
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a/".repeat(130) + "b";
        for text in [
            "",
            ":tag",
            "a:",
            "a::b",
            "a b",
            "../x",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:.tag",
            "Busybox",
            "a@sha256:00",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a@",
            "a\n",
            "http://a/b",
            "ex_ample.com/a",
            &long,
            &"a".repeat(300),
            &"0a".repeat(32),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
