//! Patterns for paths as Docker has them: `.dockerignore`, and the wildcards of COPY. Client and engine must mean the same.
//!
//! A path is matched step by step against all places in the pattern at once: no pattern makes it slow.
//! Source: Go, path/filepath, `Match`; github.com/moby/patternmatcher.

/// What is wrong with a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern {0:?}")]
pub struct PatternError(String);

/// Longest pattern, in characters.
const MAX_PATTERN: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(char),
    /// `?`
    One,
    /// `*`: anything without a slash.
    Some,
    /// `**` at the end: anything.
    Everything,
    /// `**/`: any folders, or none.
    Folders,
    /// `[a-z]`, `[^a]`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A pattern for a whole path. Shape: paths have slashes between names and none at the ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

impl Pattern {
    /// Reads a pattern as Go's `filepath.Match` does: `**` is no more than `*`.
    ///
    /// # Errors
    /// [`PatternError`]: a class that does not end, or nothing behind a backslash.
    pub fn of_names(text: &str) -> Result<Self, PatternError> {
        Self::parse(text, false)
    }

    /// Reads a pattern in which `**` stands for any number of folders.
    ///
    /// # Errors
    /// As [`Pattern::of_names`].
    pub fn of_paths(text: &str) -> Result<Self, PatternError> {
        Self::parse(text, true)
    }

    /// True if the text means more than itself.
    #[must_use]
    pub fn has_wildcards(text: &str) -> bool {
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => drop(characters.next()),
                '*' | '?' | '[' => return true,
                _ => {}
            }
        }
        false
    }

    fn parse(text: &str, folders: bool) -> Result<Self, PatternError> {
        let wrong = || PatternError(text.chars().take(200).collect());
        if text.chars().count() > MAX_PATTERN {
            return Err(wrong());
        }
        let mut parts = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(character) = rest.next() {
            parts.push(match character {
                '?' => Part::One,
                '*' if folders && rest.peek() == Some(&'*') => {
                    while rest.peek() == Some(&'*') {
                        rest.next();
                    }
                    if rest.peek() == Some(&'/') {
                        rest.next();
                    }
                    if rest.peek().is_none() { Part::Everything } else { Part::Folders }
                }
                '*' => Part::Some,
                '[' => class(&mut rest).ok_or_else(wrong)?,
                '\\' => Part::Literal(rest.next().ok_or_else(wrong)?),
                other => Part::Literal(other),
            });
        }
        Ok(Self(parts))
    }

    /// Whether a path fits, from its first character to its last.
    #[must_use]
    pub fn fits(&self, path: &str) -> bool {
        let mut places = vec![false; self.0.len() + 1];
        places[0] = true;
        self.spread(&mut places, true);
        for character in path.chars() {
            let mut next = vec![false; places.len()];
            for (index, part) in self.0.iter().enumerate().filter(|(index, _)| places[*index]) {
                let slash = character == '/';
                match part {
                    Part::Literal(literal) => next[index + 1] |= *literal == character,
                    Part::One => next[index + 1] |= !slash,
                    Part::Some => next[index] |= !slash,
                    Part::Everything | Part::Folders => next[index] = true,
                    Part::Class { negated, ranges } => {
                        let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&character));
                        next[index + 1] |= within != *negated && !slash;
                    }
                }
            }
            places = next;
            self.spread(&mut places, character == '/');
        }
        places[self.0.len()]
    }

    /// What may stand for nothing is passed over. `**/` ends at a slash only.
    fn spread(&self, places: &mut [bool], after_slash: bool) {
        for (index, part) in self.0.iter().enumerate() {
            let passes = match part {
                Part::Some | Part::Everything => true,
                Part::Folders => after_slash,
                _ => false,
            };
            places[index + 1] |= places[index] && passes;
        }
    }
}

fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Part> {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let one = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| match rest.next()? {
            '\\' => rest.next(),
            other => Some(other),
        };
        if rest.peek() == Some(&']') && !ranges.is_empty() {
            rest.next();
            return Some(Part::Class { negated, ranges });
        }
        let low = one(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { one(rest)? } else { low };
        ranges.push((low, high));
    }
}

/// A `.dockerignore`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreList(Vec<(Pattern, bool)>);

impl IgnoreList {
    /// Reads a file: a pattern a line, `!` takes back, `#` is a comment.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pattern = |line: &str| {
            let (text, back) = line.strip_prefix('!').map_or((line, false), |rest| (rest.trim(), true));
            let clean = clean(text);
            if text.is_empty() { Err(PatternError(line.to_owned())) } else { Ok((Pattern::of_paths(&clean)?, back)) }
        };
        lines.map(pattern).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a path is left out: by the last line that fits it or a folder above it.
    #[must_use]
    pub fn excludes(&self, path: &str) -> bool {
        let above = path.char_indices().filter(|(_, character)| *character == '/').map(|(at, _)| &path[..at]);
        let all: Vec<&str> = std::iter::once(path).chain(above).collect();
        let last = self.0.iter().rev().find(|(pattern, _)| all.iter().any(|path| pattern.fits(path)));
        last.is_some_and(|(_, back)| !back)
    }

    /// Whether something in a folder that is left out may be taken back, so that it has to be looked through.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        self.0.iter().any(|(_, back)| *back)
    }
}

/// A path without `.`, `..` and needless slashes, from nowhere in particular. Source: Go, `filepath.Clean`.
fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => drop(names.pop()),
            ".." if path.starts_with('/') => {}
            name => names.push(name),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_go_does() {
        for (pattern, path, fits) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("a*/b", "abc/b", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a-c]x", "/x", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("**", "a/b", false),
            ("d/*", "d/x", true),
            ("a.c", "abc", false),
        ] {
            assert_eq!(Pattern::of_names(pattern).unwrap().fits(path), fits, "{pattern} {path}");
        }
        for bad in ["[", "[a", "a\\", "[]"] {
            assert!(Pattern::of_names(bad).is_err(), "{bad}");
        }
        assert!(Pattern::has_wildcards("a*") && !Pattern::has_wildcards("a\\*b"));
    }

    #[test]
    fn ignore_files_are_read_as_docker_does() {
        let list =
            "# comment\n\n*.md\n!README.md\n/build/\n**/tmp\nsrc/**/*.o\n  spaces  \ndeep/**\n!deep/keep\n./dot\n";
        let list = IgnoreList::parse(list).unwrap();
        for (path, excluded) in [
            ("a.md", true),
            ("README.md", false),
            ("sub/a.md", false),
            ("build", true),
            ("build/x/y", true),
            ("a/build", false),
            ("tmp", true),
            ("a/b/tmp", true),
            ("a/b/tmp/c", true),
            ("atmp", false),
            ("src/a.o", true),
            ("src/x/y/a.o", true),
            ("spaces", true),
            ("deep/x", true),
            ("deep/keep", false),
            ("deep/keep/x", false),
            ("dot", true),
            ("# comment", false),
        ] {
            assert_eq!(list.excludes(path), excluded, "{path}");
        }
        assert!(list.takes_back());
        assert!(IgnoreList::parse("!").is_err());
        assert!(IgnoreList::parse("*\n!a").unwrap().excludes("b"));
    }

    #[test]
    fn no_pattern_is_slow() {
        let pattern = Pattern::of_paths(&"*a".repeat(500)).unwrap();
        let began = std::time::Instant::now();
        assert!(!pattern.fits(&"a".repeat(400)));
        assert!(began.elapsed() < std::time::Duration::from_secs(1));
    }
}
