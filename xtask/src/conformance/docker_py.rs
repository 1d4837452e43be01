//! docker-py: the integration tests in the source release of Docker's SDK for Python.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::Folders;
use super::results::{Case, Cases, Outcome};
use super::session::Session;
use super::side::SOCKET;
use crate::workspace;

/// The newest API version that dockerd 20.10 has: the version in which both sides are asked.
const API_VERSION: &str = "1.41";
const CASE_SECONDS: u32 = 60;

fn home(folders: &Folders) -> PathBuf {
    folders.root.join("docker-py")
}

/// Makes the virtual environment and unpacks the tests, once for each `requirements.txt`.
pub fn prepare(folders: &Folders) -> anyhow::Result<()> {
    let home = home(folders);
    let requirements = folders.data.join("docker-py/requirements.txt");
    let wanted = fs::read_to_string(&requirements).with_context(|| format!("no {}", requirements.display()))?;
    let stamp = home.join("ready");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("cannot clear {}", home.display()))?;
    }
    fs::create_dir_all(home.join("source"))?;
    workspace::run_checked(Command::new("python3").args(["-m", "venv"]).arg(home.join("venv")))?;
    let pip = |words: &[&str]| {
        let mut command = Command::new(home.join("venv/bin/pip"));
        command.args(words);
        command
    };
    workspace::run_checked(pip(&["install", "--quiet", "--requirement"]).arg(&requirements))?;
    let release = wanted.lines().find(|line| line.starts_with("docker==")).context("no release of docker-py")?;
    let mut download = pip(&["download", "--quiet", "--no-deps", "--no-binary", ":all:", release, "--dest"]);
    workspace::run_checked(download.arg(&home))?;
    let archive = home.join(format!("{}.tar.gz", release.replace("==", "-")));
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--file").arg(&archive).args(["--strip-components=1", "--directory"]);
    workspace::run_checked(unpack.arg(home.join("source")))?;
    // The package itself comes from the environment.
    fs::remove_dir_all(home.join("source/docker")).context("the release has no package")?;
    if !home.join("source/tests/integration").is_dir() {
        bail!("{} holds no integration tests", archive.display());
    }
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// A line of the plugin's report.
#[derive(Deserialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    case: Case,
}

/// Runs the tests in one process of pytest.
pub fn run(session: &Session<'_>) -> anyhow::Result<Cases> {
    let home = home(session.folders);
    let report = session.own.join("report");
    fs::write(&report, "").with_context(|| format!("cannot write {}", report.display()))?;
    let mut command = Command::new(home.join("venv/bin/python"));
    command.args(["-m", "pytest", "-p", "bulkhead_report", "-p", "no:cacheprovider", "--tb=short", "-q"]);
    command.arg(format!("--timeout={}", CASE_SECONDS * session.patience())).arg("--timeout-method=signal");
    command.arg("tests/integration").current_dir(home.join("source"));
    command.env("PYTHONPATH", session.folders.data.join("docker-py")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("BULKHEAD_REPORT", &report).env("BULKHEAD_ONLY", session.names.join("\n"));
    command.env("BULKHEAD_SKIP", session.skipped.join("\n"));
    command.env("DOCKER_HOST", format!("unix://{SOCKET}")).env("DOCKER_TEST_API_VERSION", API_VERSION);
    command.env("DOCKER_CONFIG", "/run/docker-config");
    // Its code says whether tests failed; which ones, is in the report.
    let status = workspace::run(&mut command)?;
    let text = fs::read_to_string(&report).with_context(|| format!("cannot read {}", report.display()))?;
    let mut cases = Cases::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).with_context(|| format!("in {}", report.display()))?;
        cases.insert(line.name, line.case);
    }
    if cases.is_empty() {
        bail!("pytest ended with {status} and has run nothing");
    }
    let passed = cases.values().filter(|case| case.outcome == Outcome::Passed).count();
    println!("{passed} of {} passed", cases.len());
    Ok(cases)
}
