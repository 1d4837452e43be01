//! Suites that are lists of shell commands: compose's steps, and the docker CLI's answers beside dockerd's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use regex::Regex;

use super::images::REGISTRY;
use super::results::{Case, Cases, Outcome};
use super::session::Session;
use super::side::SOCKET;
use super::{Suite, newest};

/// A suite's file of steps, and what makes a step pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// The command's exit code.
    Code,
    /// What dockerd shows.
    Dockerd,
}

const STEP_SECONDS: u32 = 60;
/// Functions that the steps may use.
const FUNCTIONS: &str = r#"
within() { n=$1; shift; until "$@"; do n=$((n - 1)); [ $n -gt 0 ] || return 1; sleep 1; done; }
has() { grep "$@" >/dev/null; }
api() { local path="${!#}"; [[ $path = /v[0-9]* ]] || path=/v1.41$path; curl --silent --path-as-is --max-time 20 --globoff --unix-socket "$SOCKET" "${@:1:$#-1}" "http://localhost$path"; }
"#;

/// Runs the steps in the suite's folder, one after the other.
pub fn run(session: &Session<'_>, folder: &str, judge: Judge) -> anyhow::Result<Cases> {
    let folder = session.folders.data.join(folder);
    let file = folder.join("steps");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mask = Mask::new()?;
    let mut cases = Cases::new();
    for (name, command) in steps(&text).with_context(|| format!("in {}", file.display()))? {
        // Steps build on each other, so all of them run; names choose what is reported.
        let case = step(session, &folder, command, judge, &mask)?;
        if session.wants(name) {
            println!("{name} ... {:?}", case.outcome);
            if cases.insert(name.to_owned(), case).is_some() {
                bail!("two steps are called {name}");
            }
        }
    }
    Ok(cases)
}

/// The lines of a file: names and commands.
fn steps(text: &str) -> anyhow::Result<Vec<(&str, &str)>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(": ").with_context(|| format!("not NAME: COMMAND: {line}"))).collect()
}

fn step(session: &Session<'_>, folder: &Path, text: &str, judge: Judge, mask: &Mask) -> anyhow::Result<Case> {
    let began = Instant::now();
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg((STEP_SECONDS * session.patience()).to_string());
    command.args(["bash", "-o", "pipefail", "-c", &format!("{FUNCTIONS}\n{text}")]).current_dir(folder);
    let path = std::env::var("PATH").unwrap_or_default();
    let newest = if session.suite == Suite::Compose2 { newest::programs(session.folders) } else { PathBuf::new() };
    let first = [folder, &newest].map(|folder| folder.display().to_string());
    command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", first.join(":"))).env("SOCKET", SOCKET);
    command.env("DOCKER_HOST", format!("unix://{SOCKET}")).env("DOCKER_CONFIG", "/run/docker-config");
    command.env("DOCKER_CLI_HINTS", "false").env("DOCKER_API_VERSION", "1.41").env("COMPOSE_PROJECT_NAME", "shop");
    command.env("DOCKER_BUILDKIT", "0").env("COMPOSE_DOCKER_CLI_BUILD", "0").env("REGISTRY", REGISTRY);
    let output = command.output().context("a step does not start")?;
    let code = output.status.code().unwrap_or(-1);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let seconds = began.elapsed().as_secs_f64();
    let seen = format!("code {code}\n{out}{err}");
    Ok(match judge {
        Judge::Code if code == 0 => Case { outcome: Outcome::Passed, detail: String::new(), shown: None, seconds },
        Judge::Code => Case { outcome: Outcome::Failed, detail: seen, shown: None, seconds },
        Judge::Dockerd => Case {
            outcome: if code == 124 { Outcome::Failed } else { Outcome::Passed },
            shown: Some(mask.apply(&format!("code {code}\n{out}{}", marked(&err)))),
            detail: seen,
            seconds,
        },
    })
}

/// Lines of standard error, told from those of standard output.
fn marked(errors: &str) -> String {
    errors.lines().map(|line| format!("stderr {line}\n")).collect()
}

/// What is never the same in two runs.
struct Mask(Vec<(Regex, &'static str)>);

impl Mask {
    fn new() -> anyhow::Result<Self> {
        let patterns = [
            (r"\b[0-9a-f]{64}\b", "ID"),
            (r"\b[0-9a-f]{12}\b", "ID"),
            (r"\d{4}-\d{2}-\d{2}T[0-9:.]+(Z|[+-]\d{2}:\d{2})", "TIME"),
            (r"\d+(\.\d+)? ?(B|kB|MB|GB|KiB|MiB|GiB)\b", "SIZE"),
            (r"(Less than a second|About a minute|\d+ (second|minute)s?)", "AGE"),
            (r"(?i)(date|server|content-length): .*", "$1: MASKED"),
            (r"/[a-z]+_[a-z]+\b", "/NAME"),
        ];
        let compiled = patterns.into_iter().map(|(pattern, instead)| Ok((Regex::new(pattern)?, instead)));
        Ok(Self(compiled.collect::<anyhow::Result<_>>()?))
    }

    /// Shape: in small letters, since dockerd's later versions begin many errors with one.
    fn apply(&self, text: &str) -> String {
        let masked = self
            .0
            .iter()
            .fold(text.to_owned(), |text, (pattern, instead)| pattern.replace_all(&text, *instead).into_owned());
        masked.trim_end().to_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_and_a_command() {
        assert_eq!(steps("# x\n\na b: c: d\n").unwrap(), [("a b", "c: d")]);
        assert!(steps("nothing\n").is_err());
    }

    #[test]
    fn what_changes_from_run_to_run_is_masked() {
        let mask = Mask::new().unwrap();
        let text = format!(
            "{} {} at 2026-01-01T00:00:00.5Z, 4.1MB, Up 3 seconds\r\nServer: x",
            "ab".repeat(32),
            "0123456789ab"
        );
        assert_eq!(mask.apply(&text), "id id at time, size, up age\r\nserver: masked");
    }
}
