//! What `cp` copies from and to.

use std::path::{Component, Path};

use hyper::HeaderMap;
use serde::Deserialize;

use crate::error::{CliError, CliResult};

/// SRC or DEST.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// `-`.
    Stream,
    /// `CONTAINER:PATH`.
    Container { name: &'a str, path: &'a str },
    /// A path of this machine.
    Local(&'a str),
}

impl<'a> Place<'a> {
    /// A path with a colon in it begins with `/` or `.`, or it is a container's. Source: docker/cli, `splitCpArg`.
    pub fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            _ if text.starts_with(['/', '.']) => Self::Local(text),
            Some((name, path)) if !name.is_empty() => Self::Container { name, path },
            _ => Self::Local(text),
        }
    }
}

/// What the engine says of a path.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stat {
    mode: u32,
    /// Where a link leads to.
    #[serde(default)]
    pub link_target: String,
}

impl Stat {
    /// Reads the header of an answer.
    pub fn of(headers: &HeaderMap) -> CliResult<Self> {
        let missing = || CliError::Answer("nothing is said of the path".to_owned());
        let text = headers.get("x-docker-container-path-stat").ok_or_else(missing)?;
        let json = decode(text.as_bytes()).ok_or_else(missing)?;
        serde_json::from_slice(&json).map_err(|error| CliError::Answer(error.to_string()))
    }

    /// Go's `ModeDir`.
    pub fn is_folder(&self) -> bool {
        self.mode & 1 << 31 != 0
    }

    /// Go's `ModeSymlink`.
    pub fn is_link(&self) -> bool {
        self.mode & 1 << 27 != 0
    }
}

/// Base64. Source: RFC 4648 §4.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for sign in text.iter().filter(|sign| **sign != b'=') {
        let value = match sign {
            b'A'..=b'Z' => sign - b'A',
            b'a'..=b'z' => sign - b'a' + 26,
            b'0'..=b'9' => sign - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// A path's last name; none for one that ends in `/.`, and for the root.
pub(super) fn last_name(path: &str) -> Option<String> {
    if path.ends_with("/.") || path == "." {
        return None;
    }
    match Path::new(path).components().next_back()? {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    }
}

/// The folder that a path is in.
pub(super) fn parent(path: &str) -> &Path {
    match Path::new(path).parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        for (text, place) in [
            ("-", Place::Stream),
            ("c:/p", Place::Container { name: "c", path: "/p" }),
            ("c:", Place::Container { name: "c", path: "" }),
            ("./c:/p", Place::Local("./c:/p")),
            ("/c:p", Place::Local("/c:p")),
            ("file", Place::Local("file")),
        ] {
            assert_eq!(Place::parse(text), place);
        }
    }

    #[test]
    fn names_and_folders() {
        for (path, name, folder) in
            [("/a/b", Some("b"), "/a"), ("a", Some("a"), "."), ("/a/b/", Some("b"), "/a"), ("/", None, "/")]
        {
            assert_eq!((last_name(path).as_deref(), parent(path)), (name, Path::new(folder)), "{path}");
        }
        assert_eq!(last_name("/a/."), None);
    }

    #[test]
    fn base64_is_undone() {
        assert_eq!(decode(b"Zm9vYmE=").unwrap(), b"fooba");
        assert_eq!(decode(b"Zg==").unwrap(), b"f");
        assert!(decode(b"Z!").is_none());
    }
}
