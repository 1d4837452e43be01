//! The Dockerfile instructions that `docker import -c` and `docker commit -c` take, applied to an image's configuration.
//!
//! Source: Dockerfile reference; moby, builder/dockerfile, `BuildFromConfig`.

use proto::ErrorKind;
use serde_json::{Map, Value, json};

/// Instructions that change a configuration and need no build.
const KNOWN: [&str; 11] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An instruction that is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Not one of those that change a configuration.
    #[error("{name} is not a valid change command")]
    Unknown {
        /// The first word.
        name: String,
    },
    /// Its arguments are not of its form.
    #[error("{name}: {reason}: {arguments:?}")]
    Arguments {
        /// Which instruction.
        name: String,
        /// What is wrong.
        reason: &'static str,
        /// What was given, cut to 200 characters.
        arguments: String,
    },
}

impl ChangeError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// The `config` of an image with these instructions and nothing else. Shape: keys and values as Docker writes them.
pub(crate) fn apply(changes: &[String]) -> Result<Map<String, Value>, ChangeError> {
    let mut config = Map::new();
    apply_to(&mut config, changes)?;
    Ok(config)
}

/// Applies these instructions to a `config` that is there.
pub(crate) fn apply_to(config: &mut Map<String, Value>, changes: &[String]) -> Result<(), ChangeError> {
    // Where a list or a map is to be added to, anything else counts as none.
    for key in ["Labels", "Volumes", "ExposedPorts"] {
        config.retain(|name, value| name != key || value.is_object());
    }
    for key in ["Env", "OnBuild"] {
        config.retain(|name, value| name != key || value.is_array());
    }
    for line in changes.iter().flat_map(|change| change.lines()).map(str::trim).filter(|line| !line.is_empty()) {
        let (name, arguments) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let name = name.to_ascii_uppercase();
        if !KNOWN.contains(&name.as_str()) {
            return Err(ChangeError::Unknown { name: name.chars().take(40).collect() });
        }
        Instruction { name: &name, arguments: arguments.trim() }.apply(config)?;
    }
    Ok(())
}

struct Instruction<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl Instruction<'_> {
    fn fail(&self, reason: &'static str) -> ChangeError {
        let arguments = self.arguments.chars().take(200).collect();
        ChangeError::Arguments { name: self.name.to_owned(), reason, arguments }
    }

    fn apply(&self, config: &mut Map<String, Value>) -> Result<(), ChangeError> {
        if self.arguments.is_empty() && self.name != "CMD" && self.name != "ENTRYPOINT" {
            return Err(self.fail("an argument is needed"));
        }
        match self.name {
            "CMD" => drop(config.insert("Cmd".into(), self.command()?)),
            "ENTRYPOINT" => drop(config.insert("Entrypoint".into(), self.command()?)),
            "ENV" => self.environment(config)?,
            "LABEL" => {
                for (key, value) in self.pairs()? {
                    object(config, "Labels").insert(key, value.into());
                }
            }
            "EXPOSE" => self.expose(config)?,
            "VOLUME" => {
                for volume in self.json_array().unwrap_or_else(|| words(self.arguments)) {
                    if volume.trim().is_empty() {
                        return Err(self.fail("a volume needs a path"));
                    }
                    object(config, "Volumes").insert(volume, json!({}));
                }
            }
            "HEALTHCHECK" => drop(config.insert("Healthcheck".into(), self.health_check()?)),
            "ONBUILD" => self.on_build(config)?,
            "WORKDIR" => self.work_folder(config),
            "USER" => drop(config.insert("User".into(), self.arguments.into())),
            _ => drop(config.insert("StopSignal".into(), self.arguments.into())),
        }
        Ok(())
    }

    /// `["a", "b"]`, if it is exactly that.
    fn json_array(&self) -> Option<Vec<String>> {
        serde_json::from_str(self.arguments).ok()
    }

    /// An array, or a line for the shell.
    fn command(&self) -> Result<Value, ChangeError> {
        match self.json_array() {
            Some(words) => Ok(json!(words)),
            None if self.arguments.is_empty() => Err(self.fail("a command is needed")),
            None => Ok(json!(["/bin/sh", "-c", self.arguments])),
        }
    }

    /// `a=b "c"='d e'`, or the old `a b c`, which sets `a` to `b c`.
    fn pairs(&self) -> Result<Vec<(String, String)>, ChangeError> {
        let tokens = words(self.arguments);
        let assigns = tokens.first().is_some_and(|first| first.contains('='));
        if !assigns {
            let (key, value) = self
                .arguments
                .split_once(char::is_whitespace)
                .ok_or_else(|| self.fail("a name and a value are needed"))?;
            return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
        }
        let pair = |token: &String| match token.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(self.fail("expected name=value")),
        };
        tokens.iter().map(pair).collect()
    }

    fn environment(&self, config: &mut Map<String, Value>) -> Result<(), ChangeError> {
        let list = array(config, "Env");
        for (key, value) in self.pairs()? {
            let prefix = format!("{key}=");
            let entry = Value::from(format!("{prefix}{value}"));
            match list.iter_mut().find(|known| known.as_str().is_some_and(|known| known.starts_with(&prefix))) {
                Some(known) => *known = entry,
                None => list.push(entry),
            }
        }
        Ok(())
    }

    fn expose(&self, config: &mut Map<String, Value>) -> Result<(), ChangeError> {
        for port in words(self.arguments) {
            let (range, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
            let protocol = protocol.to_ascii_lowercase();
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
            let valid = matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last);
            let (Some(first), Some(last), true) =
                (number(first), number(last), valid && matches!(protocol.as_str(), "tcp" | "udp" | "sctp"))
            else {
                return Err(self.fail("expected port[-port][/tcp|udp|sctp]"));
            };
            for port in first..=last {
                object(config, "ExposedPorts").insert(format!("{port}/{protocol}"), json!({}));
            }
        }
        Ok(())
    }

    /// `NONE`, or options and `CMD`.
    fn health_check(&self) -> Result<Value, ChangeError> {
        if self.arguments.eq_ignore_ascii_case("none") {
            return Ok(json!({ "Test": ["NONE"] }));
        }
        let mut check = Map::new();
        let mut rest = self.arguments;
        while let Some(option) = rest.strip_prefix("--") {
            let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
            let (key, value) = option.split_once('=').ok_or_else(|| self.fail("expected --option=value"))?;
            let number = match key {
                "retries" => value.parse::<u32>().ok().map(u64::from),
                _ => duration_ns(value),
            };
            let key = match key {
                "interval" => "Interval",
                "timeout" => "Timeout",
                "start-period" => "StartPeriod",
                "start-interval" => "StartInterval",
                "retries" => "Retries",
                _ => return Err(self.fail("unknown option")),
            };
            check.insert(key.into(), number.ok_or_else(|| self.fail("not a number or a duration"))?.into());
            rest = after.trim_start();
        }
        let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if !word.eq_ignore_ascii_case("cmd") || command.trim().is_empty() {
            return Err(self.fail("expected NONE or CMD and a command"));
        }
        let test = match serde_json::from_str::<Vec<String>>(command.trim()) {
            Ok(words) => [vec!["CMD".to_owned()], words].concat(),
            Err(_) => vec!["CMD-SHELL".to_owned(), command.trim().to_owned()],
        };
        check.insert("Test".into(), json!(test));
        Ok(check.into())
    }

    fn on_build(&self, config: &mut Map<String, Value>) -> Result<(), ChangeError> {
        let trigger = self.arguments.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        if matches!(trigger.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            return Err(self.fail("not allowed as a trigger"));
        }
        array(config, "OnBuild").push(self.arguments.into());
        Ok(())
    }

    /// A relative folder is below the one before it.
    fn work_folder(&self, config: &mut Map<String, Value>) {
        let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or("/").to_owned();
        let base = if self.arguments.starts_with('/') { String::new() } else { before };
        let mut parts = Vec::new();
        for part in base.split('/').chain(self.arguments.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        config.insert("WorkingDir".into(), format!("/{}", parts.join("/")).into());
    }
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    value.as_object_mut().expect("only made here, as an object")
}

fn array<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = config.entry(key).or_insert_with(|| json!([]));
    value.as_array_mut().expect("only made here, as an array")
}

/// Words as a shell cuts them: quotes hold blanks together, a backslash takes the next character as it is (not in single quotes).
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(characters.next()),
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// Go's notation: `1h30m`, `5s`, `250ms`. Whole numbers only.
fn duration_ns(text: &str) -> Option<u64> {
    let (mut total, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(scale)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[&str]) -> Value {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        apply(&changes).unwrap().into()
    }

    #[test]
    fn instructions_change_the_configuration_as_dockers() {
        for (changes, expected) in [
            (vec!["CMD echo hi"], json!({"Cmd": ["/bin/sh", "-c", "echo hi"]})),
            (vec![r#"cmd ["sh", "-l"]"#], json!({"Cmd": ["sh", "-l"]})),
            (vec![r"CMD []"], json!({"Cmd": []})),
            (vec![r#"ENTRYPOINT ["/init"]"#], json!({"Entrypoint": ["/init"]})),
            (vec![r#"ENV A=1 B="x y" C=it\ is"#, "ENV A 2 3"], json!({"Env": ["A=2 3", "B=x y", "C=it is"]})),
            (vec!["ENV PATH=/bin"], json!({"Env": ["PATH=/bin"]})),
            (vec!["LABEL a=b 'c d'=e"], json!({"Labels": {"a": "b", "c d": "e"}})),
            (
                vec!["EXPOSE 80 53/udp 8000-8001"],
                json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}}),
            ),
            (vec![r#"VOLUME ["/a b"]"#, "VOLUME /c /d"], json!({"Volumes": {"/a b": {}, "/c": {}, "/d": {}}})),
            (vec!["WORKDIR /a/b", "WORKDIR ../c"], json!({"WorkingDir": "/a/c"})),
            (vec!["USER 1000:1000", "STOPSIGNAL SIGUSR1"], json!({"User": "1000:1000", "StopSignal": "SIGUSR1"})),
            (vec!["HEALTHCHECK NONE"], json!({"Healthcheck": {"Test": ["NONE"]}})),
            (
                vec!["HEALTHCHECK --interval=1m30s --retries=2 CMD curl localhost"],
                json!({"Healthcheck": {"Test": ["CMD-SHELL", "curl localhost"], "Interval": 90_000_000_000_u64, "Retries": 2}}),
            ),
            (vec!["ONBUILD RUN make"], json!({"OnBuild": ["RUN make"]})),
        ] {
            assert_eq!(config(&changes), expected, "{changes:?}");
        }
    }

    #[test]
    fn other_instructions_are_refused() {
        for change in [
            "RUN ls",
            "COPY a b",
            "FROM x",
            "ENV",
            "ENV A",
            "ENV A=1 B",
            "ENV =1",
            "EXPOSE http",
            "EXPOSE 0",
            "EXPOSE 9-8",
            "EXPOSE 80/icmp",
            "VOLUME",
            "CMD",
            "HEALTHCHECK",
            "HEALTHCHECK CMD",
            "HEALTHCHECK --x=1 CMD y",
            "ONBUILD FROM x",
            "WORKDIR",
            "\u{0}",
        ] {
            assert!(apply(&[change.to_owned()]).is_err(), "{change:?}");
        }
    }
}
