//! Paths and queries of requests.

use std::fmt::Write;

/// A path with its query, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    has_query: bool,
}

impl Url {
    /// A path that is written as it is.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { text: path.to_owned(), has_query: false }
    }

    /// `/containers/{name}{rest}`.
    #[must_use]
    pub fn container(name: &str, rest: &str) -> Self {
        Self::named("/containers/", name, rest)
    }

    /// `/images/{name}{rest}`; slashes of the name stay.
    #[must_use]
    pub fn image(name: &str, rest: &str) -> Self {
        Self::named("/images/", name, rest)
    }

    /// A path with a name in it.
    #[must_use]
    pub fn named(before: &str, name: &str, after: &str) -> Self {
        let mut text = before.to_owned();
        encode(&mut text, name, b"/:@");
        text.push_str(after);
        Self { text, has_query: false }
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        encode(&mut self.text, name, b"");
        self.text.push('=');
        encode(&mut self.text, value, b"");
        self
    }

    /// Adds a parameter if there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds `name=1` if it is set.
    #[must_use]
    pub fn with_flag(self, name: &str, set: bool) -> Self {
        if set { self.with(name, "1") } else { self }
    }

    /// The whole.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Percent-encodes what is neither unreserved nor in `kept`. Source: RFC 3986 §2.
fn encode(out: &mut String, text: &str, kept: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_cannot_break_out_of_their_place() {
        let url = Url::container("a?b#c d", "/json").with("filters", "{\"a\":1}").with_flag("all", true);
        assert_eq!(url.as_str(), "/containers/a%3Fb%23c%20d/json?filters=%7B%22a%22%3A1%7D&all=1");
        assert_eq!(Url::image("localhost:5000/a/b:v1", "/json").as_str(), "/images/localhost:5000/a/b:v1/json");
        assert_eq!(Url::new("/x").with_some("a", None).with_flag("b", false).as_str(), "/x");
    }
}
