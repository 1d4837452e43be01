//! The hooks that run outside of the container's set-up: poststart and poststop. (libcontainer runs the others.)

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;

/// A hook that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("cannot run {path}")]
    Run {
        /// The hook's program.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{path} ended with {status}")]
    Failed {
        /// The hook's program.
        path: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It took longer than its timeout allows, and was killed.
    #[error("{path} took longer than {seconds} s")]
    TimedOut {
        /// The hook's program.
        path: String,
        /// Its timeout.
        seconds: i64,
    },
}

/// Runs the hooks one after the other. Shape: `state` is the OCI state as JSON. Source: runtime-spec config.md#posix-platform-hooks.
pub fn run(hooks: &[Hook], state: &str) -> Result<(), HookError> {
    hooks.iter().try_for_each(|hook| run_one(hook, state))
}

fn run_one(hook: &Hook, state: &str) -> Result<(), HookError> {
    let path = || hook.path().display().to_string();
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    let environment = hook.env().iter().flatten().filter_map(|entry| entry.split_once('='));
    let mut child = command
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| HookError::Run { path: path(), source })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its state.
        let _ = stdin.write_all(state.as_bytes());
    }
    match wait(&mut child, hook.timeout().filter(|seconds| *seconds > 0)) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(HookError::Failed { path: path(), status }),
        Ok(None) => Err(HookError::TimedOut { path: path(), seconds: hook.timeout().unwrap_or_default() }),
        // Process 1 reaps all its children, this one too: how it ended nobody knows.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(()),
        Err(source) => Err(HookError::Run { path: path(), source }),
    }
}

/// Waits for the end; kills the hook and answers `None` when its time is over.
fn wait(child: &mut Child, seconds: Option<i64>) -> io::Result<Option<ExitStatus>> {
    let Some(seconds) = seconds else { return child.wait().map(Some) };
    let deadline = Instant::now() + Duration::from_secs(seconds.unsigned_abs());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut hook = HookBuilder::default().path("/bin/sh").args(args).env(vec!["A=b c".to_owned()]).build().unwrap();
        hook.set_timeout(timeout);
        hook
    }

    #[test]
    fn hooks_get_the_state_and_their_environment() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let script = format!("{{ cat; echo \"[$A]\"; }} > {}", out.display());
        run(&[shell(&script, None)], "the state").unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "the state[b c]\n");
    }

    #[test]
    fn failures_are_told_apart() {
        assert!(matches!(run(&[shell("exit 3", None)], ""), Err(HookError::Failed { .. })));
        assert!(matches!(run(&[shell("sleep 30", Some(1))], ""), Err(HookError::TimedOut { seconds: 1, .. })));
        let missing = HookBuilder::default().path("/nonexistent/hook").build().unwrap();
        assert!(matches!(run(&[missing], ""), Err(HookError::Run { .. })));
    }
}
