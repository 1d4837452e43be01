//! Query strings as Docker's clients write them.

use std::collections::HashMap;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::error::{ApiError, ApiResult};
use crate::filters::Filters;

/// The parameters of a request. The first one wins where a name occurs twice, as in Go's
/// `FormValue`, except in [`Query::all`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of a URL behind `?`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    /// A parameter that is there and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of a parameter, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A truth value as dockerd reads it: absent, empty, `0`, `no`, `false` and `none` are false, everything else true.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value.trim().to_ascii_lowercase().as_str(), "0" | "no" | "false" | "none"))
    }

    /// As [`Query::flag`], with a value for an absent parameter.
    #[must_use]
    pub fn flag_or(&self, name: &str, absent: bool) -> bool {
        if self.get(name).is_none() { absent } else { self.flag(name) }
    }

    /// A number.
    ///
    /// # Errors
    /// 400 when it is there and none.
    pub fn number<T: FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| ApiError::invalid(format!("invalid value {text:?} for parameter {name}: not a number")))
        };
        self.get(name).map(parse).transpose()
    }

    /// The `filters` parameter.
    ///
    /// # Errors
    /// 400 when it is there and cannot be read.
    pub fn filters(&self) -> ApiResult<Filters> {
        self.get("filters").map_or_else(|| Ok(Filters::default()), Filters::parse)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl From<&HashMap<String, String>> for Query {
    fn from(map: &HashMap<String, String>) -> Self {
        Self(map.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Undoes form encoding: `+` is a space, `%XX` a byte; what cannot be decoded stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok())).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_is_what_dockerd_takes_for_it() {
        let query = Query::parse("a=1&b=0&c=False&d=&e=none&f=anything&g");
        let truths: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| query.flag(name)).into();
        assert_eq!(truths, [true, false, false, false, false, true, false, false]);
        assert!(query.flag_or("h", true));
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_kept() {
        let query = Query::parse("filters=%7B%22a%22%3A1%7D&n=a+b%2fc&x=%zz%4&n=again");
        assert_eq!(query.get("filters"), Some("{\"a\":1}"));
        assert_eq!(query.all("n").collect::<Vec<_>>(), ["a b/c", "again"]);
        assert_eq!((query.get("n"), query.get("x")), (Some("a b/c"), Some("%zz%4")));
        assert!(Query::parse("t=x").number::<i64>("t").is_err());
        assert_eq!(Query::parse("t=-1").number::<i64>("t").unwrap(), Some(-1));
    }
}
