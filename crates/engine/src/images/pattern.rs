//! Patterns of the filter `reference`. Source: Go `path.Match`, distribution/reference `FamiliarMatch`.

/// True if the pattern stands for the whole text: `*` is any run of characters but `/`, `?` one of them, `[a-c]` and
/// `[^a-c]` one of a set, `\` takes the next character as it is. A malformed pattern fits nothing.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    fits_from(&pattern, &text)
}

fn fits_from(mut pattern: &[char], mut text: &[char]) -> bool {
    // Where to go on when what came after the last star does not fit: one character later.
    let mut retry: Option<(&[char], &[char])> = None;
    loop {
        if let ['*', rest @ ..] = pattern {
            retry = Some((rest, text));
            pattern = rest;
            continue;
        }
        let step = match (pattern.is_empty(), text.split_first()) {
            (true, None) => return true,
            (false, Some((first, _))) => one(pattern, *first),
            (true, Some(_)) | (false, None) => None,
        };
        match (step, retry) {
            (Some(rest), _) => (pattern, text) = (rest, &text[1..]),
            (None, Some((after_star, from))) if from.first().is_some_and(|skipped| *skipped != '/') => {
                retry = Some((after_star, &from[1..]));
                (pattern, text) = (after_star, &from[1..]);
            }
            (None, _) => return false,
        }
    }
}

/// Matches one character; gives the rest of the pattern.
fn one(pattern: &[char], character: char) -> Option<&[char]> {
    match pattern {
        ['?', rest @ ..] => (character != '/').then_some(rest),
        ['[', rest @ ..] => set(rest, character),
        ['\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == character).then_some(rest),
        [] => None,
    }
}

fn set(pattern: &[char], character: char) -> Option<&[char]> {
    let (negated, mut rest) = match pattern {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let mut first = true;
    loop {
        match rest {
            [']', after @ ..] if !first => return (found != negated && character != '/').then_some(after),
            [low, '-', high, after @ ..] if *high != ']' => {
                found |= (*low..=*high).contains(&character);
                rest = after;
            }
            [one, after @ ..] => {
                found |= *one == character;
                rest = after;
            }
            [] => return None,
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_gos() {
        for (pattern, text) in [
            ("busybox", "busybox"),
            ("busy*", "busybox:latest"),
            ("*:latest", "busybox:latest"),
            ("*/*:v?", "me/app:v1"),
            ("[a-c]*", "busybox"),
            ("[^x]usybox", "busybox"),
            ("a*b*c", "aXbbYc"),
            ("a\\*", "a*"),
            ("*", ""),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("busy", "busybox"),
            ("*", "me/app"),
            ("?", "/"),
            ("[x-z]*", "busybox"),
            ("a*b", "acbd"),
            ("[", "["),
            ("", "a"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        assert!(!fits(&"a*".repeat(50), &("a".repeat(200) + "/b")));
    }
}
