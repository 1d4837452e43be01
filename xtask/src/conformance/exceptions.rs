//! `tests/conformance/exceptions.txt`: what is not asked of this engine, with reasons.

use anyhow::{Context, bail};

use super::Suite;
use super::side::Side;

/// Both sides, if there is only an older Docker to compare with.
const OLDER: &str = "older";

/// The lines of the file.
#[derive(Clone)]
pub struct Exceptions {
    lines: Vec<Exception>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    suite: String,
    side: String,
    pattern: String,
    /// Why.
    pub reason: String,
}

impl Exceptions {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let lines = lines.map(|(at, line)| Exception::parse(line).with_context(|| format!("line {}", at + 1)));
        Ok(Self { lines: lines.collect::<Result<_, _>>()? })
    }

    /// Patterns of the cases that are run against nobody.
    pub fn skipped(&self, suite: Suite) -> Vec<&str> {
        let wanted = |line: &&Exception| line.suite == suite.word() && line.side == "skip";
        self.lines.iter().filter(wanted).map(|line| line.pattern.as_str()).collect()
    }

    /// Those that hold beside the newest Docker, if its results are there: lines of the side `older` hold without them alone.
    pub fn beside(mut self, newest: bool) -> Self {
        self.lines.retain(|line| !newest || line.side != OLDER);
        self
    }

    /// The line that allows a case to differ.
    pub fn allowing(&self, suite: Suite, side: Side, case: &str) -> Option<&Exception> {
        self.lines.iter().find(|line| line.is_about(suite, side) && matches(&line.pattern, case))
    }

    /// Lines about a suite and a side of which none of these cases, all that differ, is an instance.
    pub fn unneeded<'a>(&self, suite: Suite, side: Side, differing: &'a [String]) -> Vec<String> {
        let needed = |line: &&Exception| differing.iter().any(|case: &'a String| matches(&line.pattern, case));
        let about = self.lines.iter().filter(|line| line.is_about(suite, side));
        about.filter(|line| !needed(line)).map(|line| format!("{} {}", line.side, line.pattern)).collect()
    }
}

impl Exception {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let (words, reason) = line.split_once("  # ").context("no reason")?;
        let words: Vec<&str> = words.splitn(3, ' ').map(str::trim).filter(|word| !word.is_empty()).collect();
        let [suite, side, pattern] = words[..] else { bail!("not SUITE SIDE PATTERN  # reason") };
        if Suite::ALL.iter().all(|known| known.word() != suite) {
            bail!("no suite is called {suite}");
        }
        if !["skip", "process", "hyperv", "both", OLDER].contains(&side) {
            bail!("{side} is neither skip, process, hyperv, both nor older");
        }
        let own = |word: &str| word.to_owned();
        Ok(Self { suite: own(suite), side: own(side), pattern: own(pattern), reason: own(reason.trim()) })
    }

    fn is_about(&self, suite: Suite, side: Side) -> bool {
        self.suite == suite.word() && (self.side == side.word() || self.side == "both" || self.side == OLDER)
    }
}

/// True when a text has the pattern's form; `*` stands for any text.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b*", "abc", true),
            ("*b", "abc", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn lines_name_suite_side_pattern_and_reason() {
        let text = "# heading\n\ndocker-py skip *swarm*  # swarm\nbollard hyperv a*  # why\nbollard both up  # why\n";
        let exceptions = Exceptions::parse(text).unwrap();
        assert_eq!(exceptions.skipped(Suite::DockerPy), ["*swarm*"]);
        assert!(exceptions.allowing(Suite::Bollard, Side::Hyperv, "ab").is_some());
        assert!(exceptions.allowing(Suite::Bollard, Side::Process, "ab").is_none());
        assert!(exceptions.allowing(Suite::Bollard, Side::Process, "up").is_some());
        assert_eq!(exceptions.unneeded(Suite::Bollard, Side::Hyperv, &["ab".to_owned()]), ["both up"]);
        assert!(exceptions.unneeded(Suite::Bollard, Side::Process, &["up".to_owned()]).is_empty());
        let text = "cli older a  # r\n";
        assert!(Exceptions::parse(text).unwrap().beside(false).allowing(Suite::Cli, Side::Hyperv, "a").is_some());
        assert!(Exceptions::parse(text).unwrap().beside(true).allowing(Suite::Cli, Side::Hyperv, "a").is_none());
        for wrong in ["docker-py skip a", "nosuch skip a  # r", "docker-py nobody a  # r", "docker-py skip  # r"] {
            assert!(Exceptions::parse(wrong).is_err(), "{wrong}");
        }
    }
}
