//! Reads a configuration file: TOML, or JSON if its name ends so.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{ConfigError, place};

/// Bytes. No configuration is longer; whatever is, was named by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) setting: Setting,
    /// File and line.
    pub(super) at: String,
}

/// A value.
#[derive(Debug)]
pub(super) enum Setting {
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Setting>),
    Table(Vec<(String, Setting)>),
}

/// Reads a file, in the order of its keys.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(io::Error::other(format!("it is longer than {MAX_BYTES} bytes"))));
    }
    if path.extension().is_some_and(|ext| ext == "json") { json(path, &text) } else { toml(path, &text) }
}

fn toml(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        at: place(path, text, error.span().map_or(0, |span| span.start)),
        what: error.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    let mut found: Vec<_> = table.into_inner().into_iter().collect();
    found.sort_by_key(|(key, _)| key.span().start);
    let entry = |(key, value): (toml::Spanned<_>, toml::Spanned<DeValue<'_>>)| {
        let at = place(path, text, key.span().start);
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        Entry { key: key.into_owned(), setting: from_toml(value.into_inner()), at }
    };
    Ok(found.into_iter().map(entry).collect())
}

fn from_toml(value: DeValue<'_>) -> Setting {
    match value {
        DeValue::Boolean(value) => Setting::Bool(value),
        DeValue::Integer(number) => Setting::Number(number.to_string()),
        DeValue::Float(number) => Setting::Number(number.to_string()),
        DeValue::String(text) => Setting::Text(text.into_owned()),
        DeValue::Datetime(time) => Setting::Text(time.to_string()),
        DeValue::Array(items) => Setting::List(items.into_iter().map(|item| from_toml(item.into_inner())).collect()),
        DeValue::Table(table) => {
            let mut pairs: Vec<_> = table.into_iter().collect();
            pairs.sort_by_key(|(key, _)| key.span().start);
            let pairs = pairs.into_iter();
            Setting::Table(
                pairs.map(|(key, value)| (key.into_inner().into_owned(), from_toml(value.into_inner()))).collect(),
            )
        }
    }
}

fn json(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let syntax = |line: usize, what: String| ConfigError::Syntax { at: format!("{}:{line}", path.display()), what };
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| syntax(error.line().max(1), error.to_string()))?;
    let serde_json::Value::Object(fields) = value else { return Err(syntax(1, "an object is expected".into())) };
    let entry = |(key, value): (String, serde_json::Value)| {
        // JSON's reader does not say where a key stands; a key is quoted, and its first mention is nearly always it.
        let at = place(path, text, text.find(&format!("\"{key}\"")).unwrap_or(0));
        let wrong = |what: &str| ConfigError::Value { at: at.clone(), key: key.clone(), what: what.to_owned() };
        let setting = from_json(value).ok_or_else(|| wrong("null is no value"))?;
        Ok(Entry { setting, at, key })
    };
    fields.into_iter().map(entry).collect()
}

fn from_json(value: serde_json::Value) -> Option<Setting> {
    Some(match value {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(value) => Setting::Bool(value),
        serde_json::Value::Number(number) => Setting::Number(number.to_string()),
        serde_json::Value::String(text) => Setting::Text(text),
        serde_json::Value::Array(items) => Setting::List(items.into_iter().map(from_json).collect::<Option<_>>()?),
        serde_json::Value::Object(fields) => {
            let pair = |(name, value)| Some((name, from_json(value)?));
            Setting::Table(fields.into_iter().map(pair).collect::<Option<_>>()?)
        }
    })
}
