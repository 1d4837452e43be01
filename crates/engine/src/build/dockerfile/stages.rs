//! A whole Dockerfile: arguments first, then stages.

use super::instruction::{Command, Instruction, read};
use super::lines::{DockerfileError, Line, split};

/// An ARG before the first FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgLine {
    /// As it is shown.
    pub text: String,
    /// Names, and defaults.
    pub args: Vec<(String, Option<String>)>,
}

/// An instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// As it is shown.
    pub text: String,
    /// What it is.
    pub command: Command,
}

/// FROM, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// As it is shown.
    pub text: String,
    /// An image or an earlier stage; may hold variables.
    pub base: String,
    /// Its own name, in small letters.
    pub name: Option<String>,
    /// Which of an image's platforms; may hold variables.
    pub platform: Option<String>,
    /// What is done.
    pub steps: Vec<Step>,
}

/// A Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// What stands before the first FROM.
    pub args: Vec<ArgLine>,
    /// At least one.
    pub stages: Vec<Stage>,
    /// See the directive `escape`.
    pub escape: char,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Dockerfile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`DockerfileError`], in dockerd's words.
    pub fn parse(text: &str) -> Result<Self, DockerfileError> {
        let lines = split(text)?;
        let mut file = Self { args: Vec::new(), stages: Vec::new(), escape: lines.escape, warnings: lines.warnings };
        for Line { text, number } in lines.lines {
            let instruction = read(&text, number, file.escape).map_err(|error| file.explained(error))?;
            match (instruction, file.stages.last_mut()) {
                (Instruction::From { image, name, platform }, _) => {
                    file.stages.push(Stage { text, base: image, name, platform, steps: Vec::new() });
                }
                (Instruction::Command(Command::Arg(args)), None) => file.args.push(ArgLine { text, args }),
                (Instruction::Command(_), None) => return Err(DockerfileError::NoStage),
                (Instruction::Command(command), Some(stage)) => stage.steps.push(Step { text, command }),
            }
        }
        if file.stages.is_empty() {
            return Err(DockerfileError::NoStage);
        }
        Ok(file)
    }

    /// The line after one that begins a heredoc is seldom an instruction.
    fn explained(&self, error: DockerfileError) -> DockerfileError {
        let last = self.stages.last().and_then(|stage| stage.steps.last());
        let is_heredoc = last.is_some_and(|step| {
            let after = step.text.split_once("<<").map_or("", |(_, after)| after);
            after.trim_start_matches(['-', '"', '\'']).starts_with(|c: char| c.is_alphabetic())
        });
        match error {
            DockerfileError::Instruction { line, reason } if is_heredoc => DockerfileError::Instruction {
                line,
                reason: format!("{reason} (heredocs need BuildKit, which this version of Bulkhead does not have)"),
            },
            other => other,
        }
    }

    /// Leaves out what comes after a stage.
    ///
    /// # Errors
    /// [`DockerfileError::NoTarget`].
    pub fn end_at(&mut self, target: &str) -> Result<(), DockerfileError> {
        let wanted = |stage: &Stage| stage.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(target));
        let last = self.stages.iter().rposition(wanted);
        let last = last.ok_or_else(|| DockerfileError::NoTarget(target.to_owned()))?;
        self.stages.truncate(last + 1);
        Ok(())
    }

    /// Instructions that are shown and counted.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.args.len() + self.stages.iter().map(|stage| stage.steps.len() + 1).sum::<usize>()
    }
}

/// Reads the text of an ONBUILD.
///
/// # Errors
/// [`DockerfileError`], in dockerd's words.
pub fn trigger(text: &str) -> Result<Command, DockerfileError> {
    let lines = split(text)?;
    match (read(text.trim(), 1, lines.escape)?, lines.lines.len()) {
        (Instruction::Command(command), 1) => Ok(command),
        _ => Err(DockerfileError::Form("onbuild trigger should be a single expression".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_arguments_and_stages() {
        let file = "ARG V=1\nFROM a:$V AS x\nRUN true\nFROM x\nARG W\nCOPY --from=x /a /b\n";
        let mut file = Dockerfile::parse(file).unwrap();
        assert_eq!((file.args.len(), file.stages.len(), file.step_count()), (1, 2, 6));
        assert_eq!((file.stages[0].base.as_str(), file.stages[0].name.as_deref()), ("a:$V", Some("x")));
        assert_eq!(file.end_at("zz").unwrap_err().to_string(), "failed to reach build target zz in Dockerfile");
        file.end_at("X").unwrap();
        assert_eq!(file.step_count(), 3);
        for bad in ["RUN x", "ARG a"] {
            assert_eq!(Dockerfile::parse(bad), Err(DockerfileError::NoStage), "{bad}");
        }
    }

    #[test]
    fn a_heredoc_is_told_from_a_wrong_word() {
        let error = |file: &str| Dockerfile::parse(file).unwrap_err().to_string();
        assert!(error("FROM a\nRUN <<EOF\necho\nEOF").contains("unknown instruction: ECHO (heredocs need BuildKit"));
        assert_eq!(error("FROM a\nRUN x\nFOO"), "dockerfile parse error line 3: unknown instruction: FOO");
    }

    #[test]
    fn a_trigger_is_one_command() {
        assert_eq!(trigger("STOPSIGNAL 9"), Ok(Command::StopSignal("9".into())));
        assert!(trigger("FROM x").is_err());
    }
}
