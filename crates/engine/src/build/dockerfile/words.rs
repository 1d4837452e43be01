//! Words of instructions: quotes taken off, variables put in.
//!
//! Source: buildkit, `frontend/dockerfile/shell/lex.go` (as moby 20.10 has it).

use std::iter::Peekable;
use std::str::Chars;

/// Bytes that one word may grow to.
const MAX_BYTES: usize = 4 << 20;

/// Puts variables into words.
#[derive(Debug, Clone, Copy)]
pub struct Substitution<'a> {
    /// `NAME=value`; the last of a name counts.
    pub variables: &'a [String],
    /// See the directive `escape`.
    pub escape: char,
}

impl Substitution<'_> {
    /// One word, whatever blanks the variables bring in.
    ///
    /// # Errors
    /// The reason, in dockerd's words.
    pub fn word(&self, text: &str) -> Result<String, String> {
        self.run(text).map(|(result, _)| result)
    }

    /// As many words as there are between blanks that are not quoted.
    ///
    /// # Errors
    /// As [`Substitution::word`].
    pub fn words(&self, text: &str) -> Result<Vec<String>, String> {
        self.run(text).map(|(_, words)| words)
    }

    fn run(&self, text: &str) -> Result<(String, Vec<String>), String> {
        let mut scan = Scan { rest: text.chars().peekable(), by: self, words: Words::default(), depth: 0 };
        let result = scan.until(None).map_err(|reason| format!("failed to process {text:?}: {reason}"))?;
        Ok((result, scan.words.finish()))
    }

    fn value(&self, name: &str) -> String {
        let found = self.variables.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    }
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
    in_word: bool,
}

impl Words {
    fn add(&mut self, character: char) {
        if character.is_whitespace() {
            if self.in_word && !self.current.is_empty() {
                self.done.push(std::mem::take(&mut self.current));
            }
            self.in_word = false;
        } else {
            self.add_quoted(character);
        }
    }

    fn add_quoted(&mut self, character: char) {
        self.in_word = true;
        self.current.push(character);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

struct Scan<'a> {
    rest: Peekable<Chars<'a>>,
    by: &'a Substitution<'a>,
    words: Words,
    /// `${a:-${b:-...}}`.
    depth: usize,
}

impl Scan<'_> {
    fn until(&mut self, stop: Option<char>) -> Result<String, String> {
        let mut result = String::new();
        while let Some(&next) = self.rest.peek() {
            if stop == Some(next) {
                self.rest.next();
                return Ok(result);
            }
            match next {
                '\'' => {
                    let text = single_quoted(&mut self.rest)?;
                    self.quoted(&text, &mut result);
                }
                '"' => {
                    let text = self.double_quoted()?;
                    self.quoted(&text, &mut result);
                }
                '$' => {
                    let text = self.dollar()?;
                    text.chars().for_each(|character| self.words.add(character));
                    result.push_str(&text);
                }
                _ => {
                    self.rest.next();
                    if next == self.by.escape {
                        let Some(literal) = self.rest.next() else { break };
                        self.words.add_quoted(literal);
                        result.push(literal);
                    } else {
                        self.words.add(next);
                        result.push(next);
                    }
                }
            }
            if result.len() > MAX_BYTES {
                return Err("the result is too long".to_owned());
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok(result),
        }
    }

    fn quoted(&mut self, text: &str, result: &mut String) {
        text.chars().for_each(|character| self.words.add_quoted(character));
        self.words.in_word = true;
        result.push_str(text);
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut result = String::new();
        self.rest.next();
        loop {
            match self.rest.peek().copied() {
                None => {
                    return Err("unexpected end of statement while looking for matching double-quote".to_owned());
                }
                Some('"') => {
                    self.rest.next();
                    return Ok(result);
                }
                Some('$') => {
                    let text = self.dollar()?;
                    result.push_str(&text);
                }
                Some(other) => {
                    self.rest.next();
                    if other != self.by.escape {
                        result.push(other);
                        continue;
                    }
                    match self.rest.peek().copied() {
                        None => {}
                        Some(literal) => {
                            if literal != '"' && literal != '$' && literal != self.by.escape {
                                result.push(other);
                            }
                            result.push(literal);
                            self.rest.next();
                        }
                    }
                }
            }
            if result.len() > MAX_BYTES {
                return Err("the result is too long".to_owned());
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.rest.next();
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { self.by.value(&name) });
        }
        self.rest.next();
        if self.depth > 100 {
            return Err("substitutions lie too deep".to_owned());
        }
        let name = self.name();
        match self.rest.next() {
            Some('}') if name.is_empty() => Err("bad substitution".to_owned()),
            Some('}') => Ok(self.by.value(&name)),
            Some(':') => self.modified(&name),
            None => Err("syntax error: missing '}'".to_owned()),
            Some(_) => Err("missing ':' in substitution".to_owned()),
        }
    }

    fn modified(&mut self, name: &str) -> Result<String, String> {
        let modifier = self.rest.next();
        // What stands in the braces is a word of its own.
        let outer = std::mem::take(&mut self.words);
        self.depth += 1;
        let word = self.until(Some('}'));
        self.depth -= 1;
        self.words = outer;
        let word = word.map_err(|reason| match reason.ends_with("matching }") {
            true => "syntax error: missing '}'".to_owned(),
            false => reason,
        })?;
        let value = self.by.value(name);
        match modifier {
            Some('+') => Ok(if value.is_empty() { value } else { word }),
            Some('-') => Ok(if value.is_empty() { word } else { value }),
            Some('?') if value.is_empty() => {
                Err(format!("{name}: {}", if word.is_empty() { "is not allowed to be unset" } else { &word }))
            }
            Some('?') => Ok(value),
            other => {
                Err(format!("unsupported modifier ({}) in substitution", other.map(String::from).unwrap_or_default()))
            }
        }
    }

    /// A variable's name, or one of the shell's special parameters, which are never set here.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(&next) = self.rest.peek() {
            let special = next.is_ascii_digit() || matches!(next, '@' | '*' | '#' | '?' | '-' | '$' | '!');
            let fits = next == '_' || next.is_alphanumeric();
            if name.is_empty() && special {
                self.rest.next();
                return next.to_string();
            }
            if !fits {
                break;
            }
            name.push(next);
            self.rest.next();
        }
        name
    }
}

fn single_quoted(rest: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    rest.next();
    let mut result = String::new();
    loop {
        match rest.next() {
            None => return Err("unexpected end of statement while looking for matching single-quote".to_owned()),
            Some('\'') => return Ok(result),
            Some(other) => result.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<String> {
        ["A=foo", "EMPTY=", "SPACE=x  y", "A=last"].map(str::to_owned).into()
    }

    fn word(text: &str) -> Result<String, String> {
        Substitution { variables: &variables(), escape: '\\' }.word(text)
    }

    #[test]
    fn variables_are_put_in() {
        for (text, expected) in [
            ("$A/${A}b", "last/lastb"),
            ("'$A'", "$A"),
            ("\"$A b\"", "last b"),
            (r"\$A", "$A"),
            (r#""\$A \x \"""#, r#"$A \x ""#),
            ("${NO:-def}${EMPTY:-d}${A:-x}", "defdlast"),
            ("${A:+alt}${NO:+alt}", "alt"),
            ("${NO:-${A}}", "last"),
            ("${NO:-'a b'}", "a b"),
            ("$", "$"),
            ("a$ b", "a$ b"),
            ("$1x", "x"),
            ("${A:?no}", "last"),
        ] {
            assert_eq!(word(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn faults_are_told_in_dockerds_words() {
        for (text, expected) in [
            ("${Q:x}", r#"failed to process "${Q:x}": unsupported modifier (x) in substitution"#),
            ("${Q:?no}", r#"failed to process "${Q:?no}": Q: no"#),
            ("\"x", r#"failed to process "\"x": unexpected end of statement while looking for matching double-quote"#),
            ("${A", r#"failed to process "${A": syntax error: missing '}'"#),
            ("${A:-x", r#"failed to process "${A:-x": syntax error: missing '}'"#),
            ("${A!}", r#"failed to process "${A!}": missing ':' in substitution"#),
        ] {
            assert_eq!(word(text).unwrap_err(), expected);
        }
        assert!(word(&"${A:-".repeat(100_000)).is_err());
    }

    #[test]
    fn blanks_that_are_not_quoted_part_words() {
        let words = Substitution { variables: &variables(), escape: '\\' }.words("$SPACE \"a b\" c\\ d 'e'f").unwrap();
        assert_eq!(words, ["x", "y", "a b", "c d", "ef"]);
    }
}
