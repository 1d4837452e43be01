//! The `filters` parameter of list, prune and event requests.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::clock::Timestamp;
use crate::error::{ApiError, ApiResult};

/// What a client wants to see: for each key any of the values must fit; an absent key fits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads the JSON of the parameter.
    ///
    /// Shape: `{"key": {"value": true}}`, or the older `{"key": ["value"]}`; a value that is `false` is left out.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let invalid = || ApiError::invalid("invalid filter");
        let Value::Object(keys) = serde_json::from_str(text).map_err(|_| invalid())? else { return Err(invalid()) };
        let mut filters = BTreeMap::new();
        for (key, values) in keys {
            let values: BTreeSet<String> = match values {
                Value::Object(map) => {
                    map.into_iter().filter(|(_, on)| on.as_bool() != Some(false)).map(|(value, _)| value).collect()
                }
                Value::Array(list) => list
                    .into_iter()
                    .map(|value| value.as_str().map(str::to_owned).ok_or_else(invalid))
                    .collect::<ApiResult<_>>()?,
                _ => return Err(invalid()),
            };
            filters.insert(key, values);
        }
        Ok(Self(filters))
    }

    /// Refuses keys that the request does not know.
    ///
    /// # Errors
    /// 400 naming the first such key.
    pub fn only(&self, known: &[&str]) -> ApiResult<()> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::invalid(format!("invalid filter '{key}'"))),
            None => Ok(()),
        }
    }

    /// The key is there.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The values asked for, none when the key is absent.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// The key is absent or empty, or one of its values fits.
    pub fn fits(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        self.0.get(key).is_none_or(|values| values.is_empty() || values.iter().any(|value| fits(value)))
    }

    /// As [`Filters::fits`], comparing text.
    #[must_use]
    pub fn fits_exactly(&self, key: &str, text: &str) -> bool {
        self.fits(key, |value| value == text)
    }

    /// Every value asked for (`label` or `label=value`) is among the labels.
    pub fn fits_labels<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(key).all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => label(name) == Some(value),
            None => label(wanted).is_some(),
        })
    }

    /// None of the labels asked for with `label!` is among the labels.
    pub fn lacks_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.values("label!").any(|unwanted| match unwanted.split_once('=') {
            Some((name, value)) => label(name) == Some(value),
            None => label(unwanted).is_some(),
        })
    }

    /// The one value of `until`: a time, or a duration before now.
    ///
    /// # Errors
    /// 400 for several values or one that is no time.
    pub fn until(&self) -> ApiResult<Option<Timestamp>> {
        let mut values = self.values("until");
        let Some(text) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(ApiError::invalid("more than one until filter specified"));
        }
        Timestamp::parse_until(text).map(Some).ok_or_else(|| invalid_value("until", text))
    }

    /// The one value of a key that takes a single truth value.
    ///
    /// # Errors
    /// 400 for several values or one that is no truth value.
    pub fn truth(&self, key: &str) -> ApiResult<Option<bool>> {
        let mut values = self.values(key);
        let (Some(value), None) = (values.next(), values.next()) else {
            return if self.values(key).next().is_none() {
                Ok(None)
            } else {
                Err(invalid_value(key, "several values"))
            };
        };
        match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => Ok(Some(true)),
            "0" | "f" | "false" => Ok(Some(false)),
            _ => Err(invalid_value(key, value)),
        }
    }
}

fn invalid_value(key: &str, value: &str) -> ApiError {
    ApiError::invalid(format!("invalid filter '{key}={value}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read() {
        let new = Filters::parse(r#"{"label":{"a=b":true,"c":true,"d":false}}"#).unwrap();
        let old = Filters::parse(r#"{"label":["a=b","c"]}"#).unwrap();
        assert_eq!(new, old);
        for bad in ["", "[]", "{\"a\":1}", "{\"a\":[1]}", "{"] {
            assert!(Filters::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_must_all_fit_and_values_any() {
        let filters = Filters::parse(r#"{"label":["a=b","c"],"name":["x","y"],"dangling":["true"]}"#).unwrap();
        let with = |name: &str| match name {
            "a" => Some("b"),
            "c" => Some(""),
            _ => None,
        };
        assert!(filters.fits_labels("label", with));
        assert!(!filters.fits_labels("label", |name| (name == "c").then_some("")));
        assert!(filters.fits_exactly("name", "y") && !filters.fits_exactly("name", "z"));
        assert!(filters.fits_exactly("status", "anything"));
        assert_eq!(filters.truth("dangling").unwrap(), Some(true));
        assert!(filters.truth("name").is_err());
        assert!(filters.only(&["label", "name"]).is_err());
        let unwanted = Filters::parse(r#"{"label!":["a=b"],"until":["1h"]}"#).unwrap();
        assert!(!unwanted.lacks_labels(with) && unwanted.lacks_labels(|_| None));
        assert!(unwanted.until().unwrap().is_some() && filters.until().unwrap().is_none());
        assert!(Filters::parse(r#"{"until":["nope"]}"#).unwrap().until().is_err());
    }
}
