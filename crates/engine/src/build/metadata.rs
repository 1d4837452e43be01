//! The instructions by what they change: most of them the image's configuration alone.
//!
//! Source: moby 20.10, builder/dockerfile/dispatchers.go.

use bollard::models::HealthConfig;

use super::builder::Builder;
use super::copy::absolute;
use super::dockerfile::{Command, CopyFiles, HealthCheck, Pair, Substitution};
use super::output::Failure;
use super::run::command_line;
use super::state::State;
use crate::containers::{parse_signal, random_id};
use crate::error::{ApiError, ApiResult};

impl Builder {
    /// Carries an instruction out.
    pub(super) async fn dispatch(&mut self, state: &mut State, command: &Command) -> Result<(), Failure> {
        match command {
            Command::Add(files) => self.copy(state, &self.expanded_files(state, files)?, "ADD").await,
            Command::Copy(files) => self.copy(state, &self.expanded_files(state, files)?, "COPY").await,
            Command::Run { command, mount } => self.run(state, command, *mount).await,
            Command::WorkingDir(path) => self.working_dir(state, path).await,
            other => {
                let comment = self.change(state, other).await?;
                self.commit(state, &comment).await
            }
        }
    }

    /// Changes the configuration; gives what the history says of it.
    async fn change(&mut self, state: &mut State, command: &Command) -> Result<String, Failure> {
        Ok(match command {
            Command::Arg(args) => self.arg(state, args)?,
            Command::Cmd(command) => {
                let words = command_line(command, state);
                state.cmd_set |= !words.is_empty();
                let comment = format!("CMD {}", quoted(&words));
                state.config.cmd = Some(words);
                comment
            }
            Command::Entrypoint(command) => {
                let words = command_line(command, state);
                let comment = format!("ENTRYPOINT {}", quoted(&words));
                state.config.entrypoint = Some(words);
                if !state.cmd_set {
                    state.config.cmd = None;
                }
                comment
            }
            Command::Env(pairs) => {
                let pairs = self.expanded_pairs(state, pairs)?;
                let environment = state.config.env.get_or_insert_default();
                pairs.iter().for_each(|(name, value)| set(environment, name, value));
                noted("ENV", &pairs)
            }
            Command::Label(pairs) => {
                let pairs = self.expanded_pairs(state, pairs)?;
                state.config.labels.get_or_insert_default().extend(pairs.iter().cloned());
                noted("LABEL", &pairs)
            }
            Command::Expose(ports) => self.expose(state, ports)?,
            Command::HealthCheck(check) => self.health_check(state, check).await,
            Command::Volume(volumes) => self.volume(state, volumes)?,
            other => self.set_text(state, other)?,
        })
    }

    /// As [`Builder::change`], for what is one text of the configuration.
    fn set_text(&self, state: &mut State, command: &Command) -> ApiResult<String> {
        Ok(match command {
            Command::Maintainer(name) => {
                state.maintainer.clone_from(name);
                format!("MAINTAINER {name}")
            }
            Command::OnBuild(trigger) => {
                state.config.on_build.get_or_insert_default().push(trigger.clone());
                format!("ONBUILD {trigger}")
            }
            Command::Shell(words) => {
                state.config.shell = Some(words.clone());
                format!("SHELL [{}]", words.join(" "))
            }
            Command::StopSignal(text) => {
                let text = self.expanded(state, text)?;
                parse_signal(&text).map_err(|_| ApiError::invalid(format!("Invalid signal: {text}")))?;
                state.config.stop_signal = Some(text.clone());
                format!("STOPSIGNAL {text}")
            }
            Command::User(text) => {
                let user = self.expanded(state, text)?;
                state.config.user = Some(user.clone());
                format!("USER {user}")
            }
            other => return Err(ApiError::internal(format!("{other:?} was taken for a change of the configuration"))),
        })
    }

    fn arg(&mut self, state: &State, args: &[(String, Option<String>)]) -> ApiResult<String> {
        let mut comment = "ARG".to_owned();
        for (name, default) in args {
            let name = self.expanded(state, name)?;
            let default = default.as_deref().map(|text| self.expanded(state, text)).transpose()?;
            comment.push_str(&format!(" {name}"));
            comment.extend(default.as_ref().map(|value| format!("={value}")));
            self.args.add(&name, default);
        }
        Ok(comment)
    }

    fn volume(&self, state: &mut State, volumes: &[String]) -> ApiResult<String> {
        let volumes = self.expanded_list(state, volumes)?;
        let known = state.config.volumes.get_or_insert_default();
        for volume in &volumes {
            if volume.is_empty() {
                return Err(ApiError::invalid("VOLUME specified can not be an empty string"));
            }
            if !known.contains(volume) {
                known.push(volume.clone());
            }
        }
        Ok(format!("VOLUME [{}]", volumes.join(" ")))
    }

    /// Makes the image of a step that changes no files. There is no container for it, but its line is shown, as clients know it.
    async fn commit(&mut self, state: &mut State, comment: &str) -> Result<(), Failure> {
        let noted = state.noted(&["#(nop) ", comment]);
        if self.probe(state, &noted).await? {
            return Ok(());
        }
        let id = random_id()?;
        self.output.say(format!(" ---> Running in {}\n", &id[..12])).await;
        self.commit_changes(state, &noted, None).await?;
        if self.options.remove {
            self.output.say(format!("Removing intermediate container {}\n", &id[..12])).await;
        }
        Ok(())
    }

    async fn working_dir(&mut self, state: &mut State, path: &str) -> Result<(), Failure> {
        let path = self.expanded(state, path)?;
        let before = state.config.working_dir.clone().unwrap_or_default();
        let folder = absolute(&before, path.trim_end_matches('/'));
        let folder = if path.chars().all(|c| c == '/') && !path.is_empty() { "/".to_owned() } else { folder };
        state.config.working_dir = Some(folder.clone());
        let noted = state.noted(&[&format!("#(nop) WORKDIR {folder}")]);
        if self.probe(state, &noted).await? {
            return Ok(());
        }
        self.make_folder(state, &noted, &folder).await
    }

    fn expose(&self, state: &mut State, ports: &[String]) -> Result<String, Failure> {
        let mut given = Vec::new();
        for port in ports {
            given.extend(self.with_words(state, |by| by.words(port))?);
        }
        let known = state.config.exposed_ports.get_or_insert_default();
        for port in &given {
            for port in port_range(port)? {
                if !known.contains(&port) {
                    known.push(port);
                }
            }
        }
        known.sort();
        Ok(format!("EXPOSE {}", given.join(" ")))
    }

    async fn health_check(&self, state: &mut State, check: &HealthCheck) -> String {
        let before = state.config.healthcheck.take().and_then(|check| check.test).unwrap_or_default();
        if !before.is_empty() {
            let before = before.join(" ");
            self.output.say(format!("Note: overriding previous HEALTHCHECK: [{before}]\n")).await;
        }
        let set = |nanoseconds: i64| (nanoseconds != 0).then_some(nanoseconds);
        state.config.healthcheck = Some(HealthConfig {
            test: Some(check.test.clone()),
            interval: set(check.interval_ns),
            timeout: set(check.timeout_ns),
            start_period: set(check.start_period_ns),
            retries: set(check.retries),
            ..HealthConfig::default()
        });
        let [interval, timeout, start] = [check.interval_ns, check.timeout_ns, check.start_period_ns].map(go_duration);
        let retries = u8::try_from(check.retries).ok().filter(|count| *count < 0x20);
        let retries = retries.map_or_else(|| check.retries.to_string(), |count| format!("'\\x{count:02x}'"));
        format!("HEALTHCHECK &{{{} \"{interval}\" \"{timeout}\" \"{start}\" {retries}}}", quoted(&check.test))
    }

    fn with_words<T>(
        &self,
        state: &State,
        put_in: impl FnOnce(&Substitution<'_>) -> Result<T, String>,
    ) -> ApiResult<T> {
        let environment = state.environment();
        let variables = [environment, &self.args.beside(environment)].concat();
        put_in(&Substitution { variables: &variables, escape: self.escape }).map_err(ApiError::invalid)
    }

    fn expanded(&self, state: &State, text: &str) -> ApiResult<String> {
        self.with_words(state, |by| by.word(text))
    }

    fn expanded_list(&self, state: &State, texts: &[String]) -> ApiResult<Vec<String>> {
        texts.iter().map(|text| self.expanded(state, text)).collect()
    }

    fn expanded_pairs(&self, state: &State, pairs: &[Pair]) -> ApiResult<Vec<Pair>> {
        pairs.iter().map(|(name, value)| Ok((self.expanded(state, name)?, self.expanded(state, value)?))).collect()
    }

    fn expanded_files(&self, state: &State, files: &CopyFiles) -> ApiResult<CopyFiles> {
        Ok(CopyFiles {
            sources: self.expanded_list(state, &files.sources)?,
            destination: self.expanded(state, &files.destination)?,
            chown: files.chown.as_deref().map(|owner| self.expanded(state, owner)).transpose()?,
            from: files.from.clone(),
            chmod: files.chmod.clone(),
        })
    }
}

fn noted(name: &str, pairs: &[Pair]) -> String {
    let pairs: String = pairs.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    format!("{name}{pairs}")
}

/// Sets a variable where it is, or at the end.
fn set(environment: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match environment.iter_mut().find(|known| known.split('=').next() == Some(name)) {
        Some(known) => *known = entry,
        None => environment.push(entry),
    }
}

/// Texts as Go's `%q` writes a list.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// As Go writes a duration. Shape: nanoseconds, not negative.
fn go_duration(nanoseconds: i64) -> String {
    let part = |value: i64, unit: i64, name: &str| {
        let fraction = format!("{:09}", (value % unit) * (1_000_000_000 / unit));
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{}{point}{fraction}{name}", value / unit)
    };
    match nanoseconds {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => part(n, 1_000, "µs"),
        n if n < 1_000_000_000 => part(n, 1_000_000, "ms"),
        n => {
            let (hours, minutes) = (n / 3_600_000_000_000, n / 60_000_000_000 % 60);
            let seconds = part(n % 60_000_000_000, 1_000_000_000, "s");
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// `80`, `80/udp`, `80-90/tcp`, each port with its protocol. What stands before a colon is for hosts, and not for images.
fn port_range(text: &str) -> ApiResult<Vec<String>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(ApiError::invalid(format!("Invalid proto: {protocol}")));
    }
    let ports = ports.rsplit(':').next().unwrap_or_default();
    let invalid = || ApiError::invalid(format!("Invalid containerPort: {ports}"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(invalid());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_go_does() {
        for (nanoseconds, shown) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (2_000_000, "2ms"),
        ] {
            assert_eq!(go_duration(nanoseconds), shown);
        }
    }

    #[test]
    fn ports_are_checked() {
        assert_eq!(port_range("80").unwrap(), ["80/tcp"]);
        assert_eq!(port_range("8000-8001/UDP").unwrap(), ["8000/udp", "8001/udp"]);
        assert_eq!(port_range("abc").unwrap_err().message, "Invalid containerPort: abc");
        assert_eq!(port_range("1/x").unwrap_err().message, "Invalid proto: x");
        assert!(port_range("9-8").is_err() && port_range("70000").is_err());
    }

    #[test]
    fn a_variable_is_set_where_it_is() {
        let mut environment = vec!["A=1".to_owned(), "AB=2".to_owned()];
        set(&mut environment, "A", "9");
        set(&mut environment, "C", "");
        assert_eq!(environment, ["A=9", "AB=2", "C="]);
        assert_eq!(quoted(&["a b".into(), "c".into()]), "[\"a b\" \"c\"]");
    }
}
