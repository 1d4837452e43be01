//! RUN: a container that runs to its end, and what it has changed.

use bollard::models::ContainerConfig;

use super::builder::{BUILDKIT, Builder};
use super::dockerfile::Shelled;
use super::output::Failure;
use super::state::State;
use crate::containers::Intermediate;
use crate::error::ApiError;
use crate::output::Source;

/// The words that a command is.
pub(super) fn command_line(command: &Shelled, state: &State) -> Vec<String> {
    match command {
        Shelled::Exec(words) => words.clone(),
        Shelled::Shell(line) => [state.shell(), vec![line.clone()]].concat(),
    }
}

impl Builder {
    pub(super) async fn run(&mut self, state: &mut State, command: &Shelled, mount: bool) -> Result<(), Failure> {
        if mount {
            return Err(ApiError::invalid(format!("the --mount option requires BuildKit. {BUILDKIT}")).into());
        }
        let words = command_line(command, state);
        let args = self.args.beside(state.environment());
        let noted =
            ContainerConfig { cmd: Some(self.with_args(&args, &words)), entrypoint: None, ..state.config.clone() };
        if self.probe(state, &noted).await? {
            return Ok(());
        }
        let config = ContainerConfig {
            cmd: Some(words.clone()),
            // One empty word: none, not even the image's.
            entrypoint: Some(vec![String::new()]),
            env: Some([state.environment(), &args].concat()),
            healthcheck: Some(bollard::models::HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..Default::default()
            }),
            ..state.config.clone()
        };
        let container = self.create(state, &config).await?;
        self.output.say(format!(" ---> Running in {}\n", &container.id()[..12])).await;
        let outcome = self.run_to_end(&container, &words).await;
        let outcome = match outcome {
            Ok(()) => self.commit_changes(state, &noted, Some((&container, true))).await,
            Err(failure) => Err(failure),
        };
        self.clear(container, outcome.is_ok()).await?;
        outcome
    }

    /// Arguments are part of what was done, for the cache and the history.
    fn with_args(&self, args: &[String], words: &[String]) -> Vec<String> {
        if args.is_empty() {
            return words.to_vec();
        }
        let counted: Vec<String> = args.iter().filter(|entry| self.args.counts(entry)).cloned().collect();
        [vec![format!("|{}", counted.len())], counted, words.to_vec()].concat()
    }

    async fn run_to_end(&self, container: &Intermediate, words: &[String]) -> Result<(), Failure> {
        self.check_cancelled().await?;
        let mut attached = container.output();
        container.start().await?;
        let (mut stdout, mut stderr) = (Utf8::default(), Utf8::default());
        loop {
            let chunk = tokio::select! {
                chunk = attached.output.recv() => chunk,
                () = self.cancelled.cancelled() => return Err(Self::cancelled_failure()),
            };
            let Some(chunk) = chunk else { break };
            match chunk.source {
                Source::Stdout => self.output.say(stdout.text(&chunk.bytes)).await,
                Source::Stderr => self.output.complain(&stderr.text(&chunk.bytes)).await,
            }
        }
        // Its end waits for whoever is attached.
        drop(attached);
        let end = tokio::select! {
            end = container.ended() => end,
            () = self.cancelled.cancelled() => return Err(Self::cancelled_failure()),
        };
        if !end.error.is_empty() {
            return Err(ApiError::internal(end.error).into());
        }
        if end.code != 0 {
            let message = format!("The command '{}' returned a non-zero code: {}", words.join(" "), end.code);
            return Err(Failure { error: ApiError::internal(message), code: Some(end.code) });
        }
        Ok(())
    }
}

/// Text that comes in pieces, which may part a character.
#[derive(Default)]
struct Utf8(Vec<u8>);

impl Utf8 {
    /// The text so far; the begin of a character waits for its rest. What is none is replaced.
    fn text(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let keep = match std::str::from_utf8(&self.0) {
            Err(error) if error.error_len().is_none() => self.0.split_off(error.valid_up_to()),
            _ => Vec::new(),
        };
        let text = String::from_utf8_lossy(&self.0).into_owned();
        self.0 = keep;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Utf8;

    #[test]
    fn characters_come_whole() {
        let mut text = Utf8::default();
        let parts: Vec<String> = "a€b".as_bytes().chunks(2).map(|piece| text.text(piece)).collect();
        assert_eq!(parts.concat(), "a€b");
        assert_eq!(text.text(b"\xff!"), "\u{fffd}!");
    }
}
