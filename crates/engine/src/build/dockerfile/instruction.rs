//! One instruction, read.

use super::duration;
use super::flags::Flags;
use super::lines::DockerfileError;

/// A name and a value, as they are written: quotes and variables are still in them.
pub type Pair = (String, String);

/// A command: words, or a line for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shelled {
    /// `["a", "b"]`.
    Exec(Vec<String>),
    /// `a b`.
    Shell(String),
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFiles {
    /// Paths, patterns, and for ADD URLs.
    pub sources: Vec<String>,
    /// Where to.
    pub destination: String,
    /// A stage, its number, or an image.
    pub from: Option<String>,
    /// `USER[:GROUP]`.
    pub chown: Option<String>,
    /// BuildKit's.
    pub chmod: Option<String>,
}

/// HEALTHCHECK. Durations in nanoseconds; 0 is the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Docker's `Test`.
    pub test: Vec<String>,
    pub interval_ns: i64,
    pub timeout_ns: i64,
    pub start_period_ns: i64,
    pub retries: i64,
}

/// An instruction within a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Add(CopyFiles),
    Arg(Vec<(String, Option<String>)>),
    Cmd(Shelled),
    Copy(CopyFiles),
    Entrypoint(Shelled),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    HealthCheck(HealthCheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// What is to be done first in a build from the image.
    OnBuild(String),
    Run {
        command: Shelled,
        /// BuildKit's `--mount`.
        mount: bool,
    },
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    WorkingDir(String),
}

/// FROM, or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    From { image: String, name: Option<String>, platform: Option<String> },
    Command(Command),
}

/// Why an instruction is refused: with or without the line that it stands in.
enum Refused {
    Form(String),
    Here(String),
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self::Here(reason)
    }
}

impl From<&str> for Refused {
    fn from(reason: &str) -> Self {
        Self::Here(reason.to_owned())
    }
}

/// Reads an instruction. Shape: `text` is joined; `line` is where it stands.
pub(super) fn read(text: &str, line: usize, escape: char) -> Result<Instruction, DockerfileError> {
    Reader::new(text, escape).and_then(|reader| reader.read()).map_err(|refused| match refused {
        Refused::Form(reason) => DockerfileError::Form(reason),
        Refused::Here(reason) => DockerfileError::Instruction { line, reason },
    })
}

/// One instruction, taken apart.
struct Reader {
    name: String,
    flags: Flags,
    arguments: String,
    escape: char,
}

/// The blanks between an instruction and its arguments. Source: buildkit, `reWhitespace`.
fn is_blank(character: char) -> bool {
    matches!(character, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

impl Reader {
    fn new(text: &str, escape: char) -> Result<Self, Refused> {
        let (name, rest) = text.trim().split_once(is_blank).unwrap_or((text.trim(), ""));
        let (flags, arguments) = Flags::cut(rest.trim_start(), escape);
        Ok(Self { name: name.to_ascii_uppercase(), flags, arguments, escape })
    }

    fn read(&self) -> Result<Instruction, Refused> {
        let command = match self.name.as_str() {
            "FROM" => return self.stage(),
            "ADD" | "COPY" => self.copy()?,
            "ARG" => self.arg()?,
            "CMD" => Command::Cmd(self.shelled()?),
            "ENTRYPOINT" => Command::Entrypoint(self.shelled()?),
            "ENV" => Command::Env(self.pairs()?),
            "LABEL" => Command::Label(self.pairs()?),
            "EXPOSE" => {
                let mut ports = self.some_words()?;
                ports.sort();
                Command::Expose(ports)
            }
            "HEALTHCHECK" => Command::HealthCheck(self.health_check()?),
            "MAINTAINER" => Command::Maintainer(self.one()?),
            "ONBUILD" => self.on_build()?,
            "RUN" => self.run()?,
            "SHELL" => Command::Shell(self.shell()?),
            "STOPSIGNAL" => Command::StopSignal(self.one()?),
            "USER" => Command::User(self.one()?),
            "VOLUME" => Command::Volume(self.volumes()?),
            "WORKDIR" => Command::WorkingDir(self.one()?),
            other => return Err(format!("unknown instruction: {other}").into()),
        };
        Ok(Instruction::Command(command))
    }

    fn no_flags(&self) -> Result<(), Refused> {
        Ok(self.flags.values([]).map(drop)?)
    }

    fn words(&self) -> Vec<String> {
        self.arguments.split(is_blank).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    fn at_least_one(&self) -> Refused {
        format!("{} requires at least one argument", self.name).into()
    }

    fn some_words(&self) -> Result<Vec<String>, Refused> {
        self.no_flags()?;
        let words = self.words();
        if words.is_empty() { Err(self.at_least_one()) } else { Ok(words) }
    }

    fn one(&self) -> Result<String, Refused> {
        self.no_flags()?;
        if self.arguments.is_empty() {
            return Err(format!("{} requires exactly one argument", self.name).into());
        }
        Ok(self.arguments.clone())
    }

    /// An array, if the arguments begin with one that has nothing but texts.
    fn array(&self) -> Result<Option<Vec<String>>, Refused> {
        if !self.arguments.starts_with('[') {
            return Ok(None);
        }
        let mut values = serde_json::Deserializer::from_str(&self.arguments).into_iter::<Vec<serde_json::Value>>();
        let Some(Ok(values)) = values.next() else { return Ok(None) };
        let texts: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
        let mixed = "When using JSON array syntax, arrays must be comprised of strings only.";
        texts.map(Some).ok_or_else(|| Refused::Form(mixed.to_owned()))
    }

    fn array_or_words(&self) -> Result<Vec<String>, Refused> {
        Ok(self.array()?.unwrap_or_else(|| self.words()))
    }

    fn shelled(&self) -> Result<Shelled, Refused> {
        self.no_flags()?;
        self.command()
    }

    fn command(&self) -> Result<Shelled, Refused> {
        Ok(match self.array()? {
            Some(words) => Shelled::Exec(words),
            None if self.arguments.is_empty() => Shelled::Exec(Vec::new()),
            None => Shelled::Shell(self.arguments.clone()),
        })
    }

    fn stage(&self) -> Result<Instruction, Refused> {
        let [platform] = self.flags.values(["platform"])?;
        let words = self.words();
        let (image, name) = match &words[..] {
            [image] => (image, None),
            [image, word, name] if word.eq_ignore_ascii_case("as") => {
                let name = name.to_lowercase();
                let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
                if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(fits) {
                    let rule = "name can't start with a number or contain symbols";
                    return Err(format!("invalid name for build stage: {name:?}, {rule}").into());
                }
                (image, Some(name))
            }
            _ => return Err("FROM requires either one or three arguments".into()),
        };
        Ok(Instruction::From { image: image.clone(), name, platform })
    }

    fn copy(&self) -> Result<Command, Refused> {
        let is_copy = self.name == "COPY";
        let (from, chown, chmod) = if is_copy {
            let [chown, from, chmod] = self.flags.values(["chown", "from", "chmod"])?;
            (from, chown, chmod)
        } else {
            let [chown, chmod] = self.flags.values(["chown", "chmod"])?;
            (None, chown, chmod)
        };
        let mut sources = self.array_or_words()?;
        let Some(destination) = sources.pop() else { return Err(self.at_least_one()) };
        if sources.is_empty() {
            let missing =
                "requires at least two arguments, but only one was provided. Destination could not be determined";
            return Err(format!("{} {missing}", self.name).into());
        }
        let files = CopyFiles { sources, destination, from, chown, chmod };
        Ok(if is_copy { Command::Copy(files) } else { Command::Add(files) })
    }

    fn arg(&self) -> Result<Command, Refused> {
        self.no_flags()?;
        let words = raw_words(&self.arguments, self.escape);
        if words.is_empty() {
            return Err(self.at_least_one());
        }
        let args: Result<Vec<_>, Refused> = words
            .iter()
            .map(|word| match word.split_once('=') {
                Some(("", _)) => Err("ARG names can not be blank".into()),
                Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
                None => Ok((word.clone(), None)),
            })
            .collect();
        Ok(Command::Arg(args?))
    }

    /// `a=b c=d`, or the old `a b c`, which gives `a` the value `b c`.
    fn pairs(&self) -> Result<Vec<Pair>, Refused> {
        self.no_flags()?;
        let words = raw_words(&self.arguments, self.escape);
        let Some(first) = words.first() else { return Err(self.at_least_one()) };
        if !first.contains('=') {
            let parts = self.arguments.split_once(is_blank);
            let missing = || Refused::Form(format!("{} must have two arguments", self.name));
            let (name, value) = parts.ok_or_else(missing)?;
            return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
        }
        let pair = |word: &String| {
            let wrong =
                || Refused::Form(format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value"));
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            if name.is_empty() {
                return Err(format!("{} names can not be blank", self.name).into());
            }
            Ok((name.to_owned(), value.to_owned()))
        };
        words.iter().map(pair).collect()
    }

    fn health_check(&self) -> Result<HealthCheck, Refused> {
        let (kind, rest) = self.arguments.split_once(is_blank).unwrap_or((&self.arguments, ""));
        if kind.is_empty() {
            return Err(self.at_least_one());
        }
        let nothing = HealthCheck { test: Vec::new(), interval_ns: 0, timeout_ns: 0, start_period_ns: 0, retries: 0 };
        if kind.eq_ignore_ascii_case("none") {
            self.no_flags()?;
            if !rest.trim().is_empty() {
                return Err("HEALTHCHECK NONE takes no arguments".into());
            }
            return Ok(HealthCheck { test: vec!["NONE".to_owned()], ..nothing });
        }
        if !kind.eq_ignore_ascii_case("cmd") {
            return Err(format!("Unknown type {:?} in HEALTHCHECK (try CMD)", kind.to_uppercase()).into());
        }
        let [interval, timeout, start_period, retries] =
            self.flags.values(["interval", "timeout", "start-period", "retries"])?;
        let command =
            Self { arguments: rest.trim().to_owned(), name: self.name.clone(), ..Self::new("", self.escape)? };
        let test = match command.command()? {
            Shelled::Exec(words) if words.is_empty() => return Err("Missing command after HEALTHCHECK CMD".into()),
            Shelled::Exec(words) => [vec!["CMD".to_owned()], words].concat(),
            Shelled::Shell(line) => vec!["CMD-SHELL".to_owned(), line],
        };
        let time = |value: &Option<String>| -> Result<i64, Refused> {
            let Some(text) = value else { return Ok(0) };
            let nanoseconds = duration::parse(text)?;
            if nanoseconds != 0 && nanoseconds < 1_000_000 {
                return Err(format!("Interval {text:?} cannot be less than 1ms").into());
            }
            Ok(nanoseconds)
        };
        let retries = match &retries {
            None => 0,
            Some(text) => match text.parse::<i64>() {
                Ok(count) if count >= 1 => count,
                Ok(count) => return Err(format!("--retries must be at least 1 (not {count})").into()),
                Err(_) => return Err(format!("strconv.ParseInt: parsing {text:?}: invalid syntax").into()),
            },
        };
        Ok(HealthCheck {
            test,
            interval_ns: time(&interval)?,
            timeout_ns: time(&timeout)?,
            start_period_ns: time(&start_period)?,
            retries,
        })
    }

    fn on_build(&self) -> Result<Command, Refused> {
        self.no_flags()?;
        let trigger = self.arguments.split(is_blank).next().unwrap_or_default().to_ascii_uppercase();
        match trigger.as_str() {
            "" => Err(self.at_least_one()),
            "ONBUILD" => Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into()),
            "MAINTAINER" | "FROM" => Err(format!("{trigger} isn't allowed as an ONBUILD trigger").into()),
            _ => Ok(Command::OnBuild(self.arguments.clone())),
        }
    }

    fn run(&self) -> Result<Command, Refused> {
        let [mount] = self.flags.values(["mount"])?;
        let command = self.command()?;
        if self.arguments.is_empty() {
            return Err(self.at_least_one());
        }
        Ok(Command::Run { command, mount: mount.is_some() })
    }

    fn shell(&self) -> Result<Vec<String>, Refused> {
        self.no_flags()?;
        match self.array()? {
            Some(words) if words.is_empty() => Err(self.at_least_one()),
            Some(words) => Ok(words),
            None => Err("SHELL requires the arguments to be in JSON form".into()),
        }
    }

    fn volumes(&self) -> Result<Vec<String>, Refused> {
        self.no_flags()?;
        let volumes: Vec<String> = self.array_or_words()?.iter().map(|volume| volume.trim().to_owned()).collect();
        if volumes.is_empty() {
            return Err(self.at_least_one());
        }
        if volumes.iter().any(String::is_empty) {
            return Err("VOLUME specified can not be an empty string".into());
        }
        Ok(volumes)
    }
}

/// Words between blanks that are neither quoted nor escaped; quotes and escapes stay.
fn raw_words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match quote {
            None if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if character == '"' || character == '\'' => quote = Some(character),
            Some(open) if open == character => quote = None,
            // In single quotes nothing is escaped.
            None | Some('"') if character == escape => {
                word.push(character);
                word.extend(characters.next());
                continue;
            }
            _ => {}
        }
        word.push(character);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        match read(text, 1, '\\').unwrap() {
            Instruction::Command(command) => command,
            Instruction::From { .. } => panic!("{text}"),
        }
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_instruction_is_read() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let run = |command| Command::Run { command, mount: false };
        for (text, expected) in [
            ("run echo  hi", run(Shelled::Shell("echo  hi".into()))),
            ("RUN [\"a\", \"b c\"]", run(Shelled::Exec(owned(&["a", "b c"])))),
            ("RUN [a]", run(Shelled::Shell("[a]".into()))),
            ("CMD", Command::Cmd(Shelled::Exec(Vec::new()))),
            ("ENTRYPOINT []", Command::Entrypoint(Shelled::Exec(Vec::new()))),
            (
                "ENV A=1 B=\"x y\" C=it\\ is",
                Command::Env(vec![pair("A", "1"), pair("B", "\"x y\""), pair("C", "it\\ is")]),
            ),
            ("ENV A  b c", Command::Env(vec![pair("A", "b c")])),
            ("EXPOSE 80 53/udp", Command::Expose(owned(&["53/udp", "80"]))),
            ("VOLUME [\"/a b\"]", Command::Volume(owned(&["/a b"]))),
            ("VOLUME /v  /w", Command::Volume(owned(&["/v", "/w"]))),
            ("ARG A B=2", Command::Arg(vec![("A".into(), None), ("B".into(), Some("2".into()))])),
            ("ONBUILD run  x", Command::OnBuild("run  x".into())),
            ("SHELL [\"sh\"]", Command::Shell(owned(&["sh"]))),
            ("WORKDIR /a b", Command::WorkingDir("/a b".into())),
        ] {
            assert_eq!(command(text), expected, "{text}");
        }
        let Command::Copy(copy) = command("COPY --from=0 --chown=a:b [\"x y\", \"z\", \"/d/\"]") else { panic!() };
        assert_eq!((copy.sources, copy.destination.as_str()), (owned(&["x y", "z"]), "/d/"));
        assert_eq!((copy.from.as_deref(), copy.chown.as_deref()), (Some("0"), Some("a:b")));
        let Command::HealthCheck(check) = command("HEALTHCHECK --interval=5s --retries=2 CMD x y") else { panic!() };
        assert_eq!((check.test, check.interval_ns, check.retries), (owned(&["CMD-SHELL", "x y"]), 5_000_000_000, 2));
        let from = read("FROM --platform=linux/amd64 a:1 As Base", 1, '\\').unwrap();
        let expected =
            Instruction::From { image: "a:1".into(), name: Some("base".into()), platform: Some("linux/amd64".into()) };
        assert_eq!(from, expected);
    }

    #[test]
    fn faults_are_told_in_dockerds_words() {
        for (text, expected) in [
            ("FOO x", "dockerfile parse error line 7: unknown instruction: FOO"),
            ("COPY --chwon=a b c", "dockerfile parse error line 7: Unknown flag: chwon"),
            ("RUN --network=none ls", "dockerfile parse error line 7: Unknown flag: network"),
            ("FROM a b", "dockerfile parse error line 7: FROM requires either one or three arguments"),
            (
                "FROM a AS 1a",
                "dockerfile parse error line 7: invalid name for build stage: \"1a\", name can't start with a number or contain symbols",
            ),
            (
                "COPY a",
                "dockerfile parse error line 7: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
            ),
            ("ENV A", "failed to parse Dockerfile: ENV must have two arguments"),
            (
                "ENV A=1 B",
                "failed to parse Dockerfile: Syntax error - can't find = in \"B\". Must be of the form: name=value",
            ),
            ("ARG", "dockerfile parse error line 7: ARG requires at least one argument"),
            ("WORKDIR", "dockerfile parse error line 7: WORKDIR requires exactly one argument"),
            ("SHELL sh", "dockerfile parse error line 7: SHELL requires the arguments to be in JSON form"),
            ("HEALTHCHECK FOO", "dockerfile parse error line 7: Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
            ("HEALTHCHECK --interval=x CMD a", "dockerfile parse error line 7: time: invalid duration \"x\""),
            ("ONBUILD FROM x", "dockerfile parse error line 7: FROM isn't allowed as an ONBUILD trigger"),
            (
                "CMD [\"a\", 1]",
                "failed to parse Dockerfile: When using JSON array syntax, arrays must be comprised of strings only.",
            ),
        ] {
            assert_eq!(read(text, 7, '\\').unwrap_err().to_string(), expected);
        }
    }
}
