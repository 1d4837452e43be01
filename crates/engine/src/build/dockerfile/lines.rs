//! A Dockerfile's text as instructions, one a line: comments gone, continued lines joined.

/// Bytes of one line of the file. Source: Go, bufio, `MaxScanTokenSize`.
const MAX_LINE_BYTES: usize = 65_535;

/// A Dockerfile that cannot be read. Shape: the text is dockerd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerfileError {
    /// The file breaks the form that all instructions share.
    #[error("failed to parse Dockerfile: {0}")]
    Form(String),
    /// An instruction is none, or has arguments that it cannot have.
    #[error("dockerfile parse error line {line}: {reason}")]
    Instruction {
        /// Where it begins, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The first instruction is neither FROM nor ARG.
    #[error("no build stage in current context")]
    NoStage,
    /// The stage that was asked for is not there.
    #[error("failed to reach build target {0} in Dockerfile")]
    NoTarget(String),
}

/// One instruction's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// As it is shown: joined, without blanks at the ends.
    pub text: String,
    /// Where it begins, from 1.
    pub number: usize,
}

/// A file, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines {
    pub lines: Vec<Line>,
    /// What takes the meaning of the next character away, and continues a line at its end.
    pub escape: char,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Takes a file apart.
pub(super) fn split(text: &str) -> Result<Lines, DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Lines { lines: Vec::new(), escape: '\\', warnings: Vec::new() };
    let mut directives = Directives::default();
    let mut physical = text.lines().enumerate();
    while let Some((index, raw)) = physical.next() {
        check_length(raw)?;
        let first = raw.trim_start();
        directives.read(first, &mut found.escape)?;
        let (mut line, mut ended) = without_continuation(without_comment(first), found.escape);
        if ended && line.is_empty() {
            continue;
        }
        let mut has_empty = false;
        while !ended {
            let Some((_, raw)) = physical.next() else { break };
            check_length(raw)?;
            let trimmed = raw.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                has_empty = true;
                continue;
            }
            let (more, last) = without_continuation(raw.to_owned(), found.escape);
            line.push_str(&more);
            ended = last;
        }
        if has_empty {
            found.warnings.push(format!("[WARNING]: Empty continuation line found in:\n    {line}"));
        }
        found.lines.push(Line { text: line.trim().to_owned(), number: index + 1 });
    }
    if !found.warnings.is_empty() {
        found.warnings.push("[WARNING]: Empty continuation lines will become errors in a future release.".to_owned());
    }
    if found.lines.is_empty() {
        return Err(DockerfileError::Form("file with no instructions".to_owned()));
    }
    Ok(found)
}

fn check_length(line: &str) -> Result<(), DockerfileError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(DockerfileError::Form(format!(
            "dockerfile line greater than maximum allowed size of {MAX_LINE_BYTES}"
        )));
    }
    Ok(())
}

fn without_comment(line: &str) -> String {
    if line.starts_with('#') { String::new() } else { line.to_owned() }
}

/// The line without the sign that it goes on, and whether it ends here.
fn without_continuation(line: String, escape: char) -> (String, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) => (before.to_owned(), false),
        None => (line, true),
    }
}

/// The comments at the top that say how the file is to be read.
#[derive(Default)]
struct Directives {
    over: bool,
    has_escape: bool,
}

impl Directives {
    fn read(&mut self, line: &str, escape: &mut char) -> Result<(), DockerfileError> {
        if self.over {
            return Ok(());
        }
        let pair = line.strip_prefix('#').and_then(|comment| comment.split_once('='));
        let (name, value) = pair.map_or(("", ""), |(name, value)| (name.trim(), value.trim()));
        match name.to_ascii_lowercase().as_str() {
            "escape" if self.has_escape => {
                return Err(DockerfileError::Form("only one escape parser directive can be used".to_owned()));
            }
            "escape" => {
                self.has_escape = true;
                *escape = match value.chars().next() {
                    Some(sign @ ('`' | '\\')) => sign,
                    other => {
                        let given = other.map(String::from).unwrap_or_default();
                        return Err(DockerfileError::Form(format!(
                            "invalid escape token '{given}' does not match ` or \\"
                        )));
                    }
                };
            }
            "platform" => {}
            // The first line that is none ends them.
            _ => self.over = true,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(file: &str) -> Vec<String> {
        split(file).unwrap().lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        assert_eq!(texts("FROM a\n\n# c\n  RUN x && \\\n# c\n   y\n"), ["FROM a", "RUN x &&    y"]);
        assert_eq!(texts("\u{feff}FROM a\r\nRUN b\\  \r\nc"), ["FROM a", "RUN bc"]);
        assert_eq!(texts("# escape=`\nFROM a\nRUN c:\\ `\n b"), ["FROM a", "RUN c:\\  b"]);
        // A directive after a comment or an instruction is a comment.
        assert_eq!(texts("# hello\n# escape=`\nRUN a \\\n b"), ["RUN a  b"]);
        let numbers: Vec<usize> = split("A\n\nB \\\nx\nC").unwrap().lines.iter().map(|line| line.number).collect();
        assert_eq!(numbers, [1, 3, 5]);
    }

    #[test]
    fn empty_continuations_are_warned_of() {
        let found = split("RUN a && \\\n\n  b\n").unwrap();
        assert_eq!(found.lines[0].text, "RUN a &&   b");
        assert_eq!(found.warnings.len(), 2);
        assert_eq!(found.warnings[0], "[WARNING]: Empty continuation line found in:\n    RUN a &&   b");
    }

    #[test]
    fn what_is_no_dockerfile_is_refused() {
        let error = |file: &str| split(file).unwrap_err().to_string();
        assert_eq!(error("# just\n"), "failed to parse Dockerfile: file with no instructions");
        assert_eq!(
            error("# escape=x\nA"),
            "failed to parse Dockerfile: invalid escape token 'x' does not match ` or \\"
        );
        assert!(error("# escape=`\n# escape=`\nA").contains("only one escape"));
        assert!(error(&"x".repeat(70_000)).contains("maximum allowed size of 65535"));
    }
}
