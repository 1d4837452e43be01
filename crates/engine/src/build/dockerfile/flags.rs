//! The `--name=value` words between an instruction and its arguments.

/// Flags that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Flags(Vec<String>);

impl Flags {
    /// Cuts them off an instruction's arguments.
    pub fn cut(text: &str, escape: char) -> (Self, String) {
        let mut flags = Vec::new();
        let mut rest = text.trim_start();
        while rest.starts_with("--") {
            let (word, after) = first_word(rest, escape);
            rest = after.trim_start();
            if word == "--" {
                break;
            }
            flags.push(word);
        }
        (Self(flags), rest.trim_end().to_owned())
    }

    /// The values of the flags that the instruction has, in the order of `known`.
    pub fn values<const N: usize>(&self, known: [&str; N]) -> Result<[Option<String>; N], String> {
        let mut values = [const { None }; N];
        for flag in &self.0 {
            let flag = flag.trim_start_matches("--");
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let index = known.iter().position(|known| *known == name);
            let index = index.ok_or_else(|| format!("Unknown flag: {name}"))?;
            if values[index].is_some() {
                return Err(format!("Duplicate flag specified: {name}"));
            }
            values[index] = Some(value.ok_or_else(|| format!("Missing a value on flag: {name}"))?.to_owned());
        }
        Ok(values)
    }
}

/// A word up to a blank that is neither quoted nor escaped, quotes and escapes taken off.
fn first_word(text: &str, escape: char) -> (String, &str) {
    let (mut word, mut quote) = (String::new(), None);
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match quote {
            None if character.is_whitespace() => return (word, &text[at..]),
            None if character == '"' || character == '\'' => quote = Some(character),
            Some(open) if open == character => quote = None,
            _ if character == escape => word.extend(characters.next().map(|(_, literal)| literal)),
            _ => word.push(character),
        }
    }
    (word, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_the_first_other_word() {
        let (flags, rest) = Flags::cut("--from=a  --chown=\"b c\":d x --y ", '\\');
        assert_eq!(rest, "x --y");
        assert_eq!(flags.values(["chown", "from", "chmod"]).unwrap(), [Some("b c:d".into()), Some("a".into()), None]);
        assert_eq!(flags.values(["from"]).unwrap_err(), "Unknown flag: chown");
        assert_eq!(Flags::cut("--a --b", '\\').0.values(["a"]).unwrap_err(), "Missing a value on flag: a");
        assert_eq!(Flags::cut("--a=1 --a=2", '\\').0.values(["a"]).unwrap_err(), "Duplicate flag specified: a");
        assert_eq!(Flags::cut("-- --a", '\\').1, "--a");
    }
}
