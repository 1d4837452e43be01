//! Aligned columns without lines, as `docker ps` prints them.

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};

use super::color::Tone;

/// One field of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What stands there; one line.
    pub text: String,
    /// How it looks on a terminal.
    pub tone: Option<Tone>,
}

impl Field {
    /// A field without a colour. Line feeds and other controls, which would break the table, become blanks.
    #[must_use]
    pub fn plain(text: &str) -> Self {
        Self { text: text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(), tone: None }
    }

    /// A field with a colour.
    #[must_use]
    pub fn toned(text: &str, tone: Tone) -> Self {
        Self { tone: Some(tone), ..Self::plain(text) }
    }

    fn cell(&self) -> Cell {
        let cell = Cell::new(&self.text);
        match self.tone {
            None => cell,
            Some(Tone::Good) => cell.fg(Color::Green),
            Some(Tone::Warn) => cell.fg(Color::Yellow),
            Some(Tone::Bad) => cell.fg(Color::Red),
            Some(Tone::Dim) => cell.add_attribute(Attribute::Dim),
            Some(Tone::Bold) => cell.add_attribute(Attribute::Bold),
        }
    }
}

/// Lays out rows below a heading; columns are three blanks apart.
#[must_use]
pub fn layout(heading: &[&str], rows: &[Vec<Field>], colored: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if colored {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if !heading.is_empty() {
        table.set_header(heading.iter().map(|name| Field::toned(name, Tone::Bold).cell()).collect::<Vec<_>>());
    }
    for row in rows {
        table.add_row(row.iter().map(Field::cell).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |a: &str, b: &str| vec![Field::plain(a), Field::toned(b, Tone::Good)];
        let rows = [row("a", "x"), row("longer", "y\nz")];
        assert_eq!(layout(&["ID", "NAME"], &rows, false), "ID       NAME\na        x\nlonger   y z");
        assert_eq!(layout(&["ID"], &[], false), "ID");
        assert!(layout(&["ID", "NAME"], &rows, true).contains('\x1b'));
    }
}
