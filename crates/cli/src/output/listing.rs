//! Lists such as `ps` and `images`: a table, JSON lines, only ids, or a template.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::color::{self, Tone};
use super::table::{self, Field};
use super::template::{Template, TemplateError};

/// A list that cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// `--format`.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Standard output is closed, or full.
    #[error("cannot write to standard output: {0}")]
    Write(#[from] io::Error),
}

/// A column: the field's name in templates, and what stands above it.
pub type Column = (&'static str, &'static str);

/// One row: every field that a template can name.
#[derive(Debug, Clone, Default)]
pub struct Row {
    fields: Map<String, Value>,
    /// How the value of a field looks.
    tones: Vec<(&'static str, Tone)>,
}

impl Row {
    /// Adds a field.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// Gives a field a colour.
    pub fn tone(&mut self, name: &'static str, tone: Tone) -> &mut Self {
        self.tones.push((name, tone));
        self
    }

    fn field(&self, name: &str) -> Field {
        let text = match self.fields.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        match self.tones.iter().find(|(toned, _)| *toned == name) {
            Some((_, tone)) => Field::toned(&text, *tone),
            None => Field::plain(&text),
        }
    }
}

/// How a list is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Style<'a> {
    /// `--format`.
    pub format: Option<&'a str>,
    /// `--quiet`: this field only.
    pub quiet: Option<&'a str>,
}

/// What is known about the columns of a list.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Those that are shown.
    pub shown: &'a [Column],
    /// Those that only a template shows.
    pub hidden: &'a [Column],
}

/// Writes a list to standard output.
///
/// # Errors
/// When the template does not fit, or standard output is closed.
pub fn print(columns: Columns<'_>, rows: &[Row], style: Style<'_>) -> Result<(), PrintError> {
    let text = render(columns, rows, style, color::on_stdout())?;
    if text.is_empty() { Ok(()) } else { say(&text) }
}

/// Writes a line, or several, to standard output.
///
/// # Errors
/// When it is closed.
pub fn say(text: &str) -> Result<(), PrintError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// The list as text, without a line feed at the end.
fn render(columns: Columns<'_>, rows: &[Row], style: Style<'_>, colored: bool) -> Result<String, PrintError> {
    if let (Some(field), None) = (style.quiet, style.format) {
        return Ok(rows.iter().map(|row| row.field(field).text).collect::<Vec<_>>().join("\n"));
    }
    match style.format.unwrap_or("table") {
        "table" => {
            let heading: Vec<&str> = columns.shown.iter().map(|(_, heading)| *heading).collect();
            let lines: Vec<Vec<Field>> =
                rows.iter().map(|row| columns.shown.iter().map(|(name, _)| row.field(name)).collect()).collect();
            Ok(table::layout(&heading, &lines, colored))
        }
        "json" => {
            Ok(rows.iter().map(|row| Value::Object(row.fields.clone()).to_string()).collect::<Vec<_>>().join("\n"))
        }
        format => match format.strip_prefix("table ") {
            Some(template) => templated_table(columns, rows, template),
            None => {
                let template = Template::parse(format)?;
                let lines: Result<Vec<String>, _> =
                    rows.iter().map(|row| template.apply(&Value::Object(row.fields.clone()))).collect();
                Ok(lines?.join("\n"))
            }
        },
    }
}

/// `table {{.A}}\t{{.B}}`: tabs part the columns.
fn templated_table(columns: Columns<'_>, rows: &[Row], template: &str) -> Result<String, PrintError> {
    let template = Template::parse(template)?;
    let known = |field: &str| {
        let mut all = columns.shown.iter().chain(columns.hidden);
        all.find(|(name, _)| *name == field).map_or_else(|| field.to_uppercase(), |(_, heading)| (*heading).to_owned())
    };
    let heading = template.heading(known)?;
    let heading: Vec<&str> = heading.split('\t').collect();
    let mut lines = Vec::new();
    for row in rows {
        let line = template.apply(&Value::Object(row.fields.clone()))?;
        lines.push(line.split('\t').map(Field::plain).collect());
    }
    Ok(table::layout(&heading, &lines, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: [Column; 2] = [("ID", "CONTAINER ID"), ("Names", "NAMES")];

    fn rendered(format: Option<&str>, quiet: Option<&str>) -> String {
        let rows: Vec<Row> = [("abc", "web"), ("def", "database")]
            .into_iter()
            .map(|(id, name)| {
                let mut row = Row::default();
                row.set("ID", id).set("Names", name).set("Size", 5).tone("Names", Tone::Good);
                row
            })
            .collect();
        let columns = Columns { shown: &SHOWN, hidden: &[("Size", "SIZE")] };
        render(columns, &rows, Style { format, quiet }, false).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn every_style_is_dockers() {
        assert_eq!(rendered(None, None), "CONTAINER ID   NAMES\nabc            web\ndef            database");
        assert_eq!(rendered(None, Some("ID")), "abc\ndef");
        assert_eq!(rendered(Some("{{.ID}}/{{.Size}}"), None), "abc/5\ndef/5");
        assert_eq!(rendered(Some("table {{.Names}}\\t{{.Size}}"), None), "NAMES      SIZE\nweb        5\ndatabase   5");
        assert!(rendered(Some("json"), None).starts_with("{\"ID\":\"abc\""));
        assert!(rendered(Some("{{.Nope}}"), None).contains("no such field"));
    }
}
