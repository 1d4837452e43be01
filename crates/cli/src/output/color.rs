//! Colours, only on a terminal and never where `NO_COLOR` is set.

use std::io::IsTerminal;

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Runs, works.
    Good,
    /// Attention.
    Warn,
    /// Failed, missing.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Bold,
}

/// True if standard output takes colours.
#[must_use]
pub fn on_stdout() -> bool {
    wanted() && std::io::stdout().is_terminal()
}

/// True if standard error takes colours.
#[must_use]
pub fn on_stderr() -> bool {
    wanted() && std::io::stderr().is_terminal()
}

/// Source: no-color.org; terminfo's "dumb".
fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The text in its colour. Source: ECMA-48, select graphic rendition.
#[must_use]
pub fn paint(text: &str, tone: Tone, colored: bool) -> String {
    let code = match tone {
        Tone::Good => 32,
        Tone::Warn => 33,
        Tone::Bad => 31,
        Tone::Dim => 2,
        Tone::Bold => 1,
    };
    if colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
