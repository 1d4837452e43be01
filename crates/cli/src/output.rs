//! What is printed: tables, JSON, templates, sizes and times for people.

pub mod color;
pub mod listing;
pub mod progress;
pub mod quantity;
pub mod table;
pub mod template;
pub mod time;

use serde::Serialize;

/// JSON with four blanks of indentation, as `docker inspect` prints it.
///
/// # Errors
/// As serde_json.
pub fn pretty(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
