//! Questions to the shim's program: what this host can do, which templates there are. The engine links no hypervisor.

use std::process::Stdio;
use std::time::Duration;

use proto::control::BackendChoice;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};

/// Longest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Booting a template under software emulation takes seconds; much longer means that it hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// The engine's settings as the shim takes them: guest image and backend.
fn common(engine: &Engine) -> Vec<std::ffi::OsString> {
    let backend = match engine.settings.backend {
        BackendChoice::Auto => "auto",
        BackendChoice::Kvm => "kvm",
        BackendChoice::QemuKvm => "qemukvm",
        BackendChoice::QemuTcg => "qemutcg",
    };
    vec!["--guest-image".into(), engine.settings.guest_image.clone().into(), "--backend".into(), backend.into()]
}

/// Runs the shim's `template` with these words and reads its answer.
pub(super) async fn template<T: DeserializeOwned>(engine: &Engine, words: &[&str]) -> ApiResult<T> {
    let mut command = Command::new(&engine.settings.shim);
    command.arg("template").args(words).arg("--store").arg(&engine.settings.template_store).args(common(engine));
    read(&output(command).await?)
}

/// Runs the shim's `template` with these words, which answer nothing that matters.
pub(super) async fn template_unit(engine: &Engine, words: &[&str]) -> ApiResult<()> {
    let mut command = Command::new(&engine.settings.shim);
    command.arg("template").args(words).arg("--store").arg(&engine.settings.template_store).args(common(engine));
    output(command).await.map(drop)
}

/// Runs the shim's `probe`: anew, or with what starts have found out already.
pub(super) async fn probe<T: DeserializeOwned>(engine: &Engine, anew: bool) -> ApiResult<T> {
    let mut command = Command::new(&engine.settings.shim);
    command.arg("probe").args(common(engine));
    if !anew {
        command.arg("--store").arg(&engine.settings.template_store);
    }
    read(&output(command).await?)
}

/// Runs a command to its end; the last line that it complains with is the error.
async fn output(mut command: Command) -> ApiResult<Vec<u8>> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .map_err(|_| ApiError::internal(format!("{program} does not answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| ApiError::caused(format!("cannot run the shim {program}"), &error))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(ApiError::internal(last_line(&complaint, &output.status.to_string())));
    }
    if output.stdout.len() > MAX_ANSWER_BYTES {
        return Err(ApiError::internal("the shim's answer is too long"));
    }
    Ok(output.stdout)
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(answer).map_err(|error| ApiError::caused("cannot read the shim's answer", &error))
}

/// The last line without the program's name before it.
fn last_line(complaint: &str, status: &str) -> String {
    let line = complaint.lines().rev().find(|line| !line.trim().is_empty());
    let without_name = |line: &str| match line.split_once(": ") {
        Some((name, rest)) if name.contains("shim") => rest.to_owned(),
        _ => line.to_owned(),
    };
    line.map_or_else(|| format!("the shim ended with {status}"), without_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_last_line_is_the_error() {
        let complaint = "WARN something\ncontainerd-shim-bulkhead-v2: no template abc: not found\n\n";
        assert_eq!(last_line(complaint, "exit status: 1"), "no template abc: not found");
        assert_eq!(last_line("\n", "exit status: 1"), "the shim ended with exit status: 1");
    }

    #[tokio::test]
    async fn a_failing_command_is_an_error_and_a_working_one_its_output() {
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(output(shell("echo '[1]'")).await.unwrap(), b"[1]\n");
        assert_eq!(output(shell("echo oh no >&2; exit 3")).await.unwrap_err().message, "oh no");
        assert!(output(Command::new("/nonexistent/shim")).await.is_err());
        assert!(read::<Vec<u32>>(b"{").is_err());
    }
}
